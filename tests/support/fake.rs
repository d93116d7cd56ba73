//! A mount whose changes a made-up engine applies: it publishes what was written, when the test lets it.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use parking_lot::Mutex;
use serde_json::{Value, json};
use tempfile::TempDir;
use uuid::Uuid;
use vminfod::cache::{Cache, Snapshot, Writer};
use vminfod::fs::{Mount, MountOptions, Numbers, OpenTo, Places};
use vminfod::mutation::{Changes, Done, Failure, Outcome, Wait, Wish};
use vminfod::vm::Object;
use vminfod::vm::payload::{Invalid, InvalidKind};

use super::inside::{self, put, uuid};
use super::until;

type Then = Box<dyn FnOnce(Outcome) + Send>;
type Created = Box<dyn FnOnce(Option<Uuid>, Outcome) + Send>;

/// A change that somebody asked for.
struct Job {
    uuid: Uuid,
    wish: Wish,
    wait: Wait,
    done: Then,
}

struct State {
    writer: Writer,
    /// What was asked for, in words.
    asked: Vec<String>,
    /// Whether changes wait until the test lets them go.
    held: bool,
    jobs: Vec<Job>,
    births: Vec<(Object, Created)>,
    /// What the next changes end with, instead of being applied.
    failure: Option<Failure>,
    /// Who waits until an event is shown.
    unshown: Vec<(u64, Then)>,
    shown: u64,
    creations: u32,
}

/// Applies changes by publishing them.
pub struct Fake(Mutex<State>);

impl Fake {
    fn new(writer: Writer) -> Fake {
        Fake(Mutex::new(State {
            writer,
            asked: Vec::new(),
            held: false,
            jobs: Vec::new(),
            births: Vec::new(),
            failure: None,
            unshown: Vec::new(),
            shown: 0,
            creations: 0,
        }))
    }

    /// What was asked for so far, in words.
    pub fn asked(&self) -> Vec<String> {
        self.0.lock().asked.clone()
    }

    /// Waits until so many changes have been asked for.
    #[track_caller]
    pub fn until_asked(&self, changes: usize) {
        until("changes are asked for", || {
            (self.asked().len() >= changes).then_some(())
        });
    }

    /// From now on changes wait.
    pub fn hold(&self) {
        self.0.lock().held = true;
    }

    /// Lets those go that wait, and all to come.
    pub fn let_go(&self) {
        let (jobs, births) = {
            let mut state = self.0.lock();
            state.held = false;
            let jobs = std::mem::take(&mut state.jobs);
            (jobs, std::mem::take(&mut state.births))
        };
        jobs.into_iter().for_each(|job| self.apply(job));
        for (payload, done) in births {
            self.make(payload, done);
        }
    }

    /// Lets the oldest that waits go, and keeps holding the others.
    pub fn let_one_go(&self) {
        let job = self.0.lock().jobs.remove(0);
        self.apply(job);
    }

    /// What changes end with from now on; `None`: they are applied.
    pub fn fail(&self, failure: Option<Failure>) {
        self.0.lock().failure = failure;
    }

    /// Publishes a change that nobody asked for.
    pub fn set(&self, number: usize, property: &str, value: Value) {
        let mut state = self.0.lock();
        let mut vm = vm_of(&state.writer, uuid(number));
        vm.insert(property.to_owned(), value);
        state.writer.publish(vec![put(&vm)]);
    }

    /// Removes a VM.
    pub fn remove(&self, number: usize) {
        self.0.lock().writer.publish(vec![inside::remove(number)]);
    }

    fn apply(&self, job: Job) {
        let mut state = self.0.lock();
        if let Some(failure) = state.failure.clone() {
            drop(state);
            return (job.done)(Err(failure));
        }
        let vm = vm_of(&state.writer, job.uuid);
        let target = match target(vm, &job.wish) {
            Ok(target) => target,
            Err(failure) => {
                drop(state);
                return (job.done)(Err(failure));
            }
        };
        state.writer.publish(vec![put(&target)]);
        let seq = state.writer.cache().now().seq;
        if job.wait != Wait::Confirmed {
            drop(state);
            (job.done)(Ok(Done::Applied));
        } else if state.shown >= seq {
            drop(state);
            (job.done)(Ok(Done::Already));
        } else {
            state.unshown.push((seq, job.done));
        }
    }
}

impl Fake {
    fn make(&self, payload: Object, done: Created) {
        let mut state = self.0.lock();
        if let Some(failure) = state.failure.clone() {
            drop(state);
            return done(None, Err(failure));
        }
        state.creations += 1;
        let number = 1000 + state.creations as usize;
        let mut vm = inside::vm(number);
        vm.extend(payload);
        state.writer.publish(vec![put(&vm)]);
        let seq = state.writer.cache().now().seq;
        let then = move |outcome| done(Some(uuid(number)), outcome);
        state.unshown.push((seq, Box::new(then)));
    }
}

fn vm_of(writer: &Writer, uuid: Uuid) -> Object {
    writer.cache().vm(&uuid).expect("the VM").rendered.object()
}

fn refused(message: String) -> Failure {
    Failure::Refused(Invalid {
        kind: InvalidKind::Value,
        message,
    })
}

fn target(mut vm: Object, wish: &Wish) -> Result<Object, Failure> {
    match wish {
        Wish::File { path, text } => {
            let path: Vec<&str> = path.iter().map(String::as_str).collect();
            match path[..] {
                [name] => {
                    let value = match vm.get(name) {
                        Some(Value::Number(_)) => text
                            .parse::<u64>()
                            .map(Value::from)
                            .map_err(|_| refused(format!("{name}: not a number: {text}")))?,
                        _ => Value::from(text.as_str()),
                    };
                    vm.insert(name.to_owned(), value);
                }
                [map, key] => vm[map][key] = Value::from(text.as_str()),
                ["nics", _, key] => vm["nics"][0][key] = Value::from(text.as_str()),
                _ => return Err(refused(format!("{path:?}"))),
            }
        }
        Wish::Document(payload) => {
            for (name, value) in payload {
                vm.insert(name.clone(), value.clone());
            }
        }
        Wish::Verb(_) => {}
    }
    Ok(vm)
}

fn words(wish: &Wish) -> String {
    match wish {
        Wish::File { path, text } => format!("{}={text}", path.join("/")),
        Wish::Document(payload) => Value::from(payload.clone()).to_string(),
        Wish::Verb(verb) => format!("{verb:?}"),
    }
}

impl Changes for Fake {
    fn change(&self, uuid: Uuid, wish: Wish, wait: Wait, done: Then) {
        let job = Job {
            uuid,
            wish,
            wait,
            done,
        };
        let mut state = self.0.lock();
        state.asked.push(words(&job.wish));
        if state.held {
            state.jobs.push(job);
            return;
        }
        drop(state);
        self.apply(job);
    }

    fn create(&self, payload: Object, _: Wait, done: Created) {
        let mut state = self.0.lock();
        let text = Value::from(payload.clone());
        state.asked.push(format!("create {text}"));
        if state.held {
            state.births.push((payload, done));
            return;
        }
        drop(state);
        self.make(payload, done);
    }

    fn shown(&self, snapshot: &Arc<Snapshot>) {
        let due: Vec<Then> = {
            let mut state = self.0.lock();
            state.shown = snapshot.seq;
            let unshown = std::mem::take(&mut state.unshown);
            let (due, unshown) = unshown
                .into_iter()
                .partition(|(seq, _)| *seq <= snapshot.seq);
            state.unshown = unshown;
            due.into_iter().map(|(_, done)| done).collect()
        };
        due.into_iter().for_each(|done| done(Ok(Done::Confirmed)));
    }

    fn end(&self, _: Duration) {
        let mut state = self.0.lock();
        let jobs = std::mem::take(&mut state.jobs);
        let births = std::mem::take(&mut state.births);
        drop(state);
        let ended = || {
            Err(Failure::Ended(
                "the daemon ends; nothing was applied".to_owned(),
            ))
        };
        jobs.into_iter().for_each(|job| (job.done)(ended()));
        births.into_iter().for_each(|(_, done)| done(None, ended()));
    }
}

/// A mount with the made-up engine.
pub struct Written {
    /// The engine.
    pub fake: Arc<Fake>,
    /// What it writes.
    pub cache: Arc<Cache>,
    mount: Option<Mount>,
    numbers: Numbers,
    dir: TempDir,
}

impl Written {
    /// Mounts a tree of the VMs 0 to `vms`.
    pub fn new(vms: usize) -> Written {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("vms");
        fs::create_dir(&path).unwrap();
        let (cache, mut writer) = Cache::new(64 << 20);
        let vm = |number| {
            let mut vm = inside::vm(number);
            vm.insert("customer_metadata".to_owned(), json!({}));
            vm.insert("internal_metadata".to_owned(), json!({"secret": "old"}));
            put(&vm)
        };
        writer.load((0..vms).map(vm).collect());
        let fake = Arc::new(Fake::new(writer));
        let options = MountOptions {
            source: "test".to_owned(),
            group: None,
            open_to: OpenTo::Everybody,
        };
        let mount = Mount::new(
            cache.clone(),
            &Places::Writable(path),
            &options,
            fake.clone(),
            String::new,
        )
        .unwrap();
        let numbers = mount.numbers();
        Written {
            fake,
            cache,
            mount: Some(mount),
            numbers,
            dir,
        }
    }

    /// Where it is mounted.
    pub fn at(&self) -> PathBuf {
        self.dir.path().join("vms")
    }

    /// A folder beside the mount.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// A path in the mount.
    pub fn path(&self, below: impl AsRef<Path>) -> PathBuf {
        self.at().join(below)
    }

    /// A file of a VM.
    pub fn file(&self, number: usize, below: &str) -> PathBuf {
        self.path(uuid(number).to_string()).join(below)
    }

    /// What a file of a VM holds.
    #[track_caller]
    pub fn read(&self, number: usize, below: &str) -> String {
        let path = self.file(number, below);
        fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    }

    /// Waits until so many writers wait.
    #[track_caller]
    pub fn until_waiting(&self, writers: usize) {
        until("writers wait", || {
            (self.numbers.writers_waiting() == writers).then_some(())
        });
    }

    /// Waits until what has been published is settled.
    #[track_caller]
    pub fn settled(&self) {
        let seq = self.cache.now().seq;
        until("what was published is settled", || {
            (self.numbers.settled() >= seq).then_some(())
        });
    }

    /// How many inodes the kernel holds.
    pub fn numbers(&self) -> &Numbers {
        &self.numbers
    }

    /// Stops the mount.
    pub fn stop(&mut self) {
        if let Some(mount) = self.mount.take() {
            mount.stop();
        }
    }
}

impl Drop for Written {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Waits for a thread, so that it does not hang a test for ever.
#[track_caller]
pub fn joined<T>(thread: thread::JoinHandle<T>) -> T {
    until("a thread ends", || thread.is_finished().then_some(()));
    thread.join().unwrap()
}
