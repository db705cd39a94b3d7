//! Memory that follows the guest: what both sides do with it, and how they come together again.

use std::collections::BTreeSet;

use godwit_migration::Loaded;
use godwit_migration::destination::Input as Told;
use godwit_migration::source::Input;
use godwit_migration::wire::{Control, Want, Whole};

use super::guest::SAVE_PAGE;
use super::network::{Frame, Reply};
use super::{Life, Violation, World, broken};
use crate::rules::Protocol;

/// What a destination knows of it.
#[derive(Debug, Clone, Default, Hash)]
pub(crate) struct Rest {
    /// The pages that are to follow, as the source has said, until the state is loaded.
    pub(crate) named: Vec<usize>,
    /// The pages that are not here, from then on.
    missing: Option<BTreeSet<usize>>,
    /// Those of them that somebody waits for.
    waiting: BTreeSet<usize>,
    /// The loading waits for one.
    pub(crate) loading: bool,
}

impl Rest {
    /// From now on pages are placed. What is here of those that are to follow is dropped.
    pub(crate) fn expect(&mut self, memory: &mut [u32]) {
        if !self.named.is_empty() {
            let missing: BTreeSet<usize> = self.named.drain(..).collect();
            missing.iter().for_each(|page| memory[*page] = 0);
            self.missing = Some(missing);
        }
    }

    pub(crate) fn is_expected(&self) -> bool {
        self.missing.is_some()
    }

    pub(crate) fn lacks(&self, page: usize) -> bool {
        self.missing.as_ref().is_some_and(|missing| missing.contains(&page))
    }

    pub(crate) fn lacks_any(&self) -> bool {
        self.missing.as_ref().is_some_and(|missing| !missing.is_empty())
    }

    /// Somebody waits for a page that is not here.
    pub(crate) fn touch(&mut self, page: usize) -> Told {
        self.waiting.insert(page);
        Told::Touched(vec![page as u64])
    }

    pub(crate) fn is_awaited(&self, page: usize) -> bool {
        self.waiting.contains(&page)
    }
}

impl World {
    /// The source sends pages that are asked for; their contents do not change any more.
    pub(crate) fn serve_pages(&mut self, wanted: &[u64]) {
        let Some(source) = &mut self.source else { return };
        let trusts = self.rules.protocol == Protocol::TrustSent;
        let wanted = wanted.iter().map(|page| *page as usize);
        let pages: Vec<_> = wanted.filter(|page| !trusts || source.rest.contains(page)).collect();
        source.rest.retain(|page| !pages.contains(page));
        let pages = pages.into_iter().map(|page| (page, source.memory.pages[page])).collect();
        self.net.to_destination.send(Frame::Pages(pages));
    }

    pub(crate) fn push_rest(&mut self) {
        let Some(source) = &mut self.source else { return };
        if !self.net.pages.cut {
            self.net.pages.rounds.push_back((source.rest_round, std::mem::take(&mut source.rest)));
        }
    }

    pub(crate) fn source_learns_missing(&mut self, pages: Vec<usize>) -> Input {
        if let Some(source) = self.source.as_mut().filter(|_| self.rules.protocol != Protocol::TrustSent) {
            source.rest = pages;
        }
        Input::Missing
    }

    pub(crate) fn send_missing(&mut self) {
        let Some(destination) = &self.destination else { return };
        let missing = destination.rest.missing.iter().flatten().copied().collect();
        self.net.to_source.send(Reply::Missing(missing));
        let waiting = &destination.rest.waiting;
        if !waiting.is_empty() {
            let pages = waiting.iter().map(|page| *page as u64).collect();
            self.net.to_source.send(Reply::Control(Control::Want(Want { pages })));
        }
    }

    /// Pages reach a destination that places those that are not here.
    pub(crate) fn pages_come(&mut self, pages: Vec<(usize, u32)>) -> Result<(), Violation> {
        for (page, content) in pages {
            let Some(destination) = &mut self.destination else { return Ok(()) };
            let runs = destination.runs();
            let Some(missing) = &mut destination.rest.missing else { return Ok(()) };
            if !missing.remove(&page) {
                continue;
            }
            let whole = missing.is_empty();
            if runs && content != self.guest.pages[page] {
                return Err(Violation::MemoryLost);
            }
            destination.memory[page] = content;
            destination.rest.waiting.remove(&page);
            let loaded = page == SAVE_PAGE && std::mem::take(&mut destination.rest.loading);
            if loaded {
                destination.life = Life::Paused;
            }
            if whole {
                self.tell_destination(Told::Whole(Whole::default()))?;
            }
            if loaded {
                self.tell_destination(Told::Loaded(Ok(Loaded::default())))?;
            }
        }
        Ok(())
    }

    /// The source's agent has made new connections, or cannot; `breaks`: they break in the middle of the handshakes.
    pub(crate) fn connect(&mut self, breaks: bool) -> Result<(), Violation> {
        if !std::mem::take(&mut self.net.connecting) {
            return Ok(());
        }
        let awaits = self.destination.as_ref().is_some_and(|it| it.engine.awaits_source());
        if self.net.silent || !awaits {
            return self.tell_source(Input::Reconnected(Err(broken())));
        }
        self.net.renew();
        self.tell_destination(Told::Rejoined)?;
        if breaks {
            self.net.cut(0, 0);
            self.net.to_source.told = true;
            self.net.pages.told[0] = true;
            return self.tell_source(Input::Reconnected(Err(broken())));
        }
        self.tell_source(Input::Reconnected(Ok(())))
    }
}
