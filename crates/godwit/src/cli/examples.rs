//! Every verb has examples in its help, and those and the README's are accepted.

use clap::{Command, CommandFactory, Parser};

use super::Cli;

const README: &str = include_str!("../../../../README.md");

#[test]
fn every_verb_has_examples_and_they_are_accepted() {
    let mut verbs = Vec::new();
    verbs_below(&Cli::command(), "godwit", &mut verbs);
    assert!(verbs.len() > 40, "{} verbs were found", verbs.len());
    for (verb, help) in verbs {
        let examples = commands(&help);
        let names_it =
            |words: &&Vec<String>| format!("{} ", words.join(" ")).starts_with(&format!("{verb} "));
        assert!(examples.iter().any(|words| names_it(&words)), "{verb} --help has no example");
        examples.iter().for_each(accepted);
    }
}

#[test]
fn the_readme_has_an_example_of_every_group_of_verbs_and_they_are_accepted() {
    let blocks: String = README.split("```").filter_map(|block| block.strip_prefix("sh\n")).collect();
    let examples = commands(&blocks);
    for group in Cli::command().get_subcommands().map(Command::get_name) {
        assert!(
            examples.iter().any(|words| words[1] == group),
            "the README has no example of godwit {group}"
        );
    }
    examples.iter().for_each(accepted);
}

fn accepted(words: &Vec<String>) {
    Cli::try_parse_from(words).unwrap_or_else(|error| panic!("{}: {error}", words.join(" ")));
}

/// What can be done, and not only named, with the end of its help.
fn verbs_below(command: &Command, path: &str, found: &mut Vec<(String, String)>) {
    for verb in command.get_subcommands() {
        let path = format!("{path} {}", verb.get_name());
        if verb.has_subcommands() {
            verbs_below(verb, &path, found);
        } else {
            found.push((path, verb.get_after_help().map(ToString::to_string).unwrap_or_default()));
        }
    }
}

/// The words of each command of `godwit` in lines for a shell.
fn commands(text: &str) -> Vec<Vec<String>> {
    let text = text.replace("\\\n", " ");
    let lines = text.lines().filter(|line| line.trim_start().starts_with("godwit "));
    let commands = lines.flat_map(|line| {
        let words = words(line);
        words.split(|word| word == "&&").map(<[String]>::to_vec).collect::<Vec<_>>()
    });
    commands.collect()
}

/// A line's words, up to a comment, a pipe or a file that it is written to.
fn words(line: &str) -> Vec<String> {
    let mut words: Vec<String> = Vec::new();
    for (at, part) in line.split('\'').enumerate() {
        // Every second part is between quotes.
        if at % 2 == 1 {
            words.push(part.to_owned());
        } else {
            words.extend(part.split_whitespace().map(str::to_owned));
        }
    }
    let end = words.iter().position(|word| ["#", "|", ">"].contains(&word.as_str()));
    words.truncate(end.unwrap_or(words.len()));
    words
}
