//! In what two plans differ.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::planner::{Action, Plan, Standing};

/// A plan that was computed again.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Replay {
    /// The engine that decided, and this one.
    pub engine_then: u32,
    pub engine_now: u32,
    /// What is planned now.
    pub plan: Plan,
    /// None if the plan is the same to the bit.
    pub difference: Option<Difference>,
}

/// What one plan has and the other has not.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Difference {
    /// Steps that were planned then and are not now, and the other way round.
    pub dropped: Vec<Action>,
    pub added: Vec<Action>,
    /// Whether steps that both have come in another order or at other times, for other reasons or with other figures.
    pub same_steps_differ: bool,
    pub findings_dropped: Vec<String>,
    pub findings_added: Vec<String>,
    /// How the cluster would stand afterwards.
    pub after_then: Standing,
    pub after_now: Standing,
}

impl Difference {
    /// None if the plans are the same.
    pub fn between(then: &Plan, now: &Plan) -> Option<Self> {
        if then == now {
            return None;
        }
        let actions = |plan: &Plan| plan.steps.iter().map(|step| step.action.clone()).collect::<Vec<_>>();
        let (actions_then, actions_now) = (actions(then), actions(now));
        let common = |plan: &Plan, others: &[Action]| {
            let steps = plan.steps.iter().filter(|step| others.contains(&step.action));
            steps.cloned().collect::<Vec<_>>()
        };
        Some(Self {
            same_steps_differ: common(then, &actions_now) != common(now, &actions_then),
            dropped: without(&actions_then, &actions_now),
            added: without(&actions_now, &actions_then),
            findings_dropped: without(&then.findings, &now.findings),
            findings_added: without(&now.findings, &then.findings),
            after_then: then.after.clone(),
            after_now: now.after.clone(),
        })
    }
}

fn without<T: Clone + PartialEq>(these: &[T], those: &[T]) -> Vec<T> {
    these.iter().filter(|this| !those.contains(this)).cloned().collect()
}

impl fmt::Display for Replay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.engine_then != self.engine_now {
            writeln!(
                f,
                "decided by engine {}, computed again by engine {}",
                self.engine_then, self.engine_now
            )?;
        }
        match &self.difference {
            None => write!(f, "the same plan to the bit: {} steps", self.plan.steps.len()),
            Some(difference) => difference.fmt(f),
        }
    }
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lines = |sign: &'static str, actions: &[Action]| {
            actions.iter().map(|action| format!("{sign} {action}\n")).collect::<String>()
        };
        f.write_str(&lines("-", &self.dropped))?;
        f.write_str(&lines("+", &self.added))?;
        for finding in &self.findings_dropped {
            writeln!(f, "- finding: {finding}")?;
        }
        for finding in &self.findings_added {
            writeln!(f, "+ finding: {finding}")?;
        }
        if self.same_steps_differ {
            writeln!(f, "~ steps of both plans differ in order, times or figures")?;
        }
        let (then, now) = (&self.after_then, &self.after_now);
        write!(
            f,
            "score {:.4} -> {:.4}, happiness {} -> {}, power {} W -> {} W",
            then.score, now.score, then.happiness, now.happiness, then.watts, now.watts
        )
    }
}
