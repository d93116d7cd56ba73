//! The tools that people use on the tree, as processes: once when the kernel holds nothing of our mounts, once when it
//! holds all of what they ask for.

use std::path::Path;
use std::process::{Command, Stdio};

use crate::changing::Changing;
use crate::mounts::{Daemon, READ_ONLY, WRITABLE};
use crate::report::Report;
use crate::tree::{TMPFS, Tree};
use crate::turns::{self, Subject, Turns};
use crate::{Failure, Size};

/// A tool, how to call it in the root of a tree.
#[derive(Clone, Copy, Debug)]
pub struct Tool {
    name: &'static str,
    args: &'static [&'static str],
    /// What is put behind each VM's directory to make the last arguments; without it, it gets none.
    of_vms: Option<&'static str>,
}

const fn tool(
    name: &'static str,
    args: &'static [&'static str],
    of_vms: Option<&'static str>,
) -> Tool {
    Tool { name, args, of_vms }
}

/// Lists the root.
pub const LS: Tool = tool("ls", &[], None);
/// Lists the root with attributes.
pub const LS_L: Tool = tool("ls -l", &["-l"], None);
/// Lists all below VMs.
pub const FIND: Tool = tool("find", &[], Some(""));
/// Lists all files below VMs.
pub const FIND_F: Tool = tool("find -type f", &["-type", "f"], Some(""));
/// Reads all files below VMs. What is looked for is nowhere: grep ends at the first match if nobody sees what it
/// prints.
pub const GREP: Tool = tool("grep -r", &["-r", "no such text anywhere"], Some(""));
const CAT: Tool = tool("cat */state", &[], Some("/state"));
const JQ: Tool = tool("jq .state */vm.json", &["-r", ".state"], Some("/vm.json"));

impl Tool {
    /// Runs it in a folder; seconds.
    pub fn run(&self, root: &Path, vms: &[String]) -> Result<f64, Failure> {
        let mut command = Command::new(self.name.split(' ').next().unwrap_or_default());
        command.current_dir(root).env("LC_ALL", "C");
        let below = self
            .of_vms
            .map(|below| vms.iter().map(move |vm| format!("{vm}{below}")));
        let below = below.into_iter().flatten();
        // find(1) wants its folders first.
        if self.name.starts_with("find") {
            command.args(below).args(self.args);
        } else {
            command.args(self.args).args(below);
        }
        command.stdin(Stdio::null()).stdout(Stdio::null());
        turns::seconds(|| {
            let code = command.status()?.code();
            // grep(1) says by 1 that it has found nothing.
            match code {
                Some(0) => Ok(()),
                Some(1) if self.name == GREP.name => Ok(()),
                _ => Err(format!("{command:?}: ended with {code:?}").into()),
            }
        })
    }

    /// Runs it in each place in turn; in ours when nothing is cached, then again.
    pub fn turns(
        &self,
        tree: &Tree<'_>,
        rounds: usize,
        vms: usize,
        caches: &[Cache],
    ) -> Result<Turns, Failure> {
        let vms = &tree.walked[..vms.min(tree.walked.len())];
        let mut subjects = Vec::new();
        for (name, root) in tree.places() {
            let caches = if name == TMPFS {
                &[Cache::Warm]
            } else {
                caches
            };
            for cache in caches {
                let (root, daemon) = (root.clone(), &tree.daemon);
                subjects.push(Subject::new(cache.of(name), move || {
                    cache.prepare(daemon)?;
                    self.run(&root, vms)
                }));
            }
        }
        turns::take(rounds, subjects)
    }

    /// Reports turns.
    pub fn show(&self, report: &mut Report, turns: &Turns) {
        for name in [WRITABLE, READ_ONLY] {
            for cache in [Cache::Cold, Cache::Warm] {
                turns.compare(report, self.name, &cache.of(name), TMPFS);
            }
        }
    }
}

/// What the kernel holds of our mounts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cache {
    /// Nothing.
    Cold,
    /// What the turn before this one asked for.
    Warm,
}

impl Cache {
    /// The name of a place in this state.
    pub fn of(self, place: &str) -> String {
        match self {
            _ if place == TMPFS => place.to_owned(),
            Cache::Cold => format!("{place}, cold"),
            Cache::Warm => format!("{place}, warm"),
        }
    }

    fn prepare(self, daemon: &Daemon<'_>) -> Result<(), Failure> {
        match self {
            Cache::Cold => daemon.forgotten(),
            Cache::Warm => Ok(()),
        }
    }
}

/// How many VMs the tools walk through, of those that there are.
pub const WALKED: usize = 200;

/// Measures and reports.
pub fn run(report: &mut Report, tree: &Tree<'_>) -> Result<(), Failure> {
    let rounds = 5;
    let walked = tree.walked.len().min(WALKED);
    report.section(format!(
        "Tools at {} VMs, s: {rounds} rounds; ls of the root, the others over {walked} of the VMs",
        tree.vms
    ));
    for tool in [LS, LS_L, FIND, FIND_F, CAT, GREP, JQ] {
        let caches = [Cache::Cold, Cache::Warm];
        let taken = tool.turns(tree, rounds, WALKED, &caches)?;
        tool.show(report, &taken);
    }
    Ok(())
}

/// The same while changes arrive, with what the kernel then holds.
pub fn beside_changes(report: &mut Report, size: Size, tree: &Tree<'_>) -> Result<(), Failure> {
    let (rounds, walked) = size.of((5, WALKED), (5, 50));
    report.section(format!(
        "Tools at {} VMs while 500 changes a second arrive, s: {rounds} rounds",
        tree.vms
    ));
    let changing = Changing::start(tree.daemon.zones()?)?;
    for tool in [LS, LS_L, FIND_F, CAT, GREP, JQ] {
        let taken = tool.turns(tree, rounds, walked, &[Cache::Warm])?;
        tool.show(report, &taken);
    }
    report.line("changes a second", format!("{:.0}", changing.rate()));
    Ok(())
}
