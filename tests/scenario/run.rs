//! Carries out a story, step by step, on some datapath.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use kube_ferry::model::Family;

use super::datapath::{Attempt, Datapath, Reach, Wanted};
use super::objects::Objects;
use super::story::{Edit, Ending, Expected, Flow, Line, Pod, Step, Story, Tool, Translation, When};
use super::traffic::Traffic;
use crate::support::client::{ANSWER, Open, Outcome, SILENCE, ask};
use crate::support::icmp::{Echo, ping};
use crate::support::patience::{LONG, poll};
use crate::support::proxy::get;
use crate::support::statistics::{chi_square, is_balanced};
use crate::support::world::{Actor, World, twin};

/// Connections for each backend of a `balanced` step.
const BALANCED_CONNECTIONS: usize = 250;

/// Runs all steps, then a restart that must write nothing, whatever the story was. The error begins with the number of
/// the line.
pub(crate) fn run(story: &Story, datapath: &mut impl Datapath) -> Result<(), String> {
    let mut run = Run::new(datapath);
    run.play(story)?;
    run.end()
}

/// Checks that a story is consistent: that objects exist that it changes, addresses have twins, names are known.
pub(crate) fn rehearse(story: &Story) -> Result<(), String> {
    run(story, &mut Rehearsal)
}

fn as_flow(step: &Line<Step>) -> Option<Line<Flow>> {
    let Step::Flow(flow) = &step.what else { return None };
    Some(Line { number: step.number, what: flow.clone() })
}

/// A story that is being told.
pub(super) struct Run<'d, D> {
    pub(super) datapath: &'d mut D,
    objects: Objects,
    /// Whether the datapath has the objects as they are now.
    applied: bool,
    /// Pods that `sticky` steps found, by name and family.
    found: BTreeMap<(String, Family), &'static str>,
    open: BTreeMap<(String, Family), OpenConnection>,
    traffic: BTreeMap<(String, Family), Traffic>,
    last_flows: Vec<Line<Flow>>,
    /// The node's addresses have changed, which the proxy hears of by a way of its own: flows may take a moment.
    settling: bool,
}

struct OpenConnection {
    connection: Open,
    /// What became of its last request.
    last: Reach,
}

impl<'d, D: Datapath> Run<'d, D> {
    pub(super) fn new(datapath: &'d mut D) -> Run<'d, D> {
        Run {
            datapath,
            objects: Objects::new(),
            applied: false,
            found: BTreeMap::new(),
            open: BTreeMap::new(),
            traffic: BTreeMap::new(),
            last_flows: Vec::new(),
            settling: false,
        }
    }

    /// Runs all steps of a story, or of its next part; what they wrote is in force then.
    pub(super) fn play(&mut self, story: &Story) -> Result<(), String> {
        let mut steps = story.steps.as_slice();
        while let Some((first, rest)) = steps.split_first() {
            // Flows that stand together run together; most of them wait for silence or for the scheduler.
            let flows: Vec<Line<Flow>> = steps.iter().map_while(as_flow).collect();
            if flows.is_empty() {
                self.step(first).map_err(|why| format!("{}: {why}", first.number))?;
                steps = rest;
            } else {
                self.put_in_force()?;
                self.flows(&flows)?;
                steps = &steps[flows.len()..];
                self.last_flows = flows;
            }
        }
        self.put_in_force()
    }

    /// A restart that writes nothing.
    pub(super) fn end(&mut self) -> Result<(), String> {
        self.restart(Ending::Asked).map_err(|why| format!("end: {why}"))
    }

    /// Resets the connections of an `open` step.
    pub(super) fn hang_up(&mut self, name: &str) {
        let before = self.open.len();
        let mine = self.open.extract_if(.., |(of, _), _| of == name);
        mine.for_each(|(_, open)| open.connection.reset());
        assert!(self.open.len() < before, "no connection is called {name}");
    }

    fn step(&mut self, step: &Line<Step>) -> Result<(), String> {
        // Others' rules may be there before the proxy is.
        if !matches!(step.what, Step::Edit(_) | Step::Foreign(..)) {
            self.put_in_force()?;
        }
        if self.datapath.world().is_none() && needs_sockets(&step.what) {
            self.datapath.skip(step.number, "needs sockets; not looked at");
        }
        match &step.what {
            Step::Edit(edit) => self.edit(edit),
            Step::Flow(flow) => self.flows(&[Line { number: step.number, what: flow.clone() }]),
            Step::Sticky(name, flow) => self.sticky(name, flow),
            Step::Balanced(flow) => self.balanced(flow),
            Step::Open(name, flow) => self.open(name, flow),
            Step::Again { name, expected, when } => self.again(name, expected.as_ref(), *when),
            Step::Http { families, .. } => {
                families.iter().try_for_each(|family| self.http(&step.what, *family))
            }
            Step::Remembered { source, yes, families } => {
                families.iter().try_for_each(|family| self.remembered(*source, *yes, *family))
            }
            Step::Address { address: at, present } => {
                self.last_flows.clear();
                self.settling = true;
                let mut families = Family::ALL.into_iter();
                families.try_for_each(|it| self.datapath.set_address(address(*at, it), *present))
            }
            Step::Restart(ending) => self.restart(*ending),
            Step::Upgrade(flags) => self.datapath.upgrade(flags),
            Step::Ping { families, .. } => {
                families.iter().try_for_each(|family| self.ping(&step.what, *family))
            }
            Step::Traffic(name, flow) => self.traffic(name, flow),
            Step::Unharmed(name) => self.unharmed(name),
            Step::Logged(words) => poll(LONG, || {
                let Some(log) = self.datapath.log() else { return Ok(()) };
                let found = log.lines().any(|line| words.iter().all(|word| line.contains(word)));
                found.then_some(()).ok_or(format!("no line has all of {words:?}"))
            }),
            Step::Foreign(tool, rules) => {
                self.foreign(*tool, rules);
                Ok(())
            }
            Step::Pause(time) => {
                // What time undoes is not to be asked again.
                self.last_flows.clear();
                self.datapath.pass(*time);
                Ok(())
            }
        }
    }

    fn edit(&mut self, edit: &Edit) -> Result<(), String> {
        self.applied = false;
        // They were about other objects.
        self.last_flows.clear();
        match edit {
            Edit::Apply(name, body) => self.objects.apply(name, body.clone()),
            Edit::Change(name, patch) => self.objects.change(name, patch.clone())?,
            Edit::Delete(name) => self.objects.delete(name)?,
            Edit::Endpoints(slices) => self.objects.set_endpoints(slices),
            Edit::Gone { service, endpoint } => {
                // What both families found may be two pods: each then loses its own, and the other's too.
                let families = Family::ALL.iter();
                let pods: BTreeSet<&str> =
                    families.filter_map(|family| self.pod(endpoint, *family).ok()).collect();
                if pods.is_empty() {
                    return Err(format!("nothing found {endpoint:?}"));
                }
                for pod in pods {
                    self.objects.remove_endpoint(service, pod)?;
                }
            }
        }
        Ok(())
    }

    /// Steps that change objects take effect together when something else comes.
    fn put_in_force(&mut self) -> Result<(), String> {
        if !self.applied {
            self.datapath.apply(&self.objects)?;
            self.applied = true;
            self.settling = false;
        }
        Ok(())
    }

    fn flows(&self, flows: &[Line<Flow>]) -> Result<(), String> {
        if self.settling && self.datapath.world().is_some() {
            return poll(LONG, || self.flows_now(flows));
        }
        self.flows_now(flows)
    }

    fn flows_now(&self, flows: &[Line<Flow>]) -> Result<(), String> {
        let mut attempts = Vec::new();
        let mut lines = Vec::new();
        for flow in flows {
            for family in &flow.what.families {
                let attempt = self.attempt(&flow.what, *family);
                attempts.push(attempt.map_err(|why| format!("{}: {why}", flow.number))?);
                lines.push(format!("{}: {family:?} flow {}", flow.number, flow.what.text));
            }
        }
        let seen = self.datapath.reach(&attempts);
        let failures: Vec<String> = std::iter::zip(&attempts, &seen)
            .zip(lines)
            .filter(|((attempt, seen), _)| !attempt.wanted.is_met_by(seen))
            .map(|((_, seen), line)| format!("{line}\n    but: {}", list(seen)))
            .collect();
        if failures.is_empty() { Ok(()) } else { Err(failures.join("\n  ")) }
    }

    pub(super) fn attempt(&self, flow: &Flow, family: Family) -> Result<Attempt, String> {
        Ok(Attempt {
            source: flow.source,
            to: SocketAddr::new(address(flow.address, family), flow.port),
            protocol: flow.protocol,
            wanted: self.resolve(&flow.expected, flow.translation, family)?,
        })
    }

    fn resolve(
        &self,
        expected: &Expected,
        translation: Option<Translation>,
        family: Family,
    ) -> Result<Wanted, String> {
        Ok(match expected {
            Expected::Reject => Wanted::Reject,
            Expected::Drop => Wanted::Drop,
            Expected::NotHandled => Wanted::NotHandled,
            Expected::Backends { pods, except } => {
                let except: Vec<&str> =
                    except.iter().map(|pod| self.pod(pod, family)).collect::<Result<_, _>>()?;
                let mut backends = BTreeSet::new();
                for backend in pods {
                    let pod = self.pod(&backend.pod, family)?;
                    if !except.contains(&pod) {
                        backends.insert((pod, backend.port));
                    }
                }
                Wanted::Backends(backends, translation)
            }
        })
    }

    fn pod(&self, pod: &Pod, family: Family) -> Result<&'static str, String> {
        match pod {
            Pod::Named(name) => Ok(name),
            Pod::Found(name) => {
                let found = self.found.get(&(name.clone(), family)).copied();
                found.ok_or(format!("no step before this one found ${name} in {family:?}"))
            }
        }
    }

    /// All connections reach one and the same of the wanted pods.
    fn sticky(&mut self, name: &str, flow: &Flow) -> Result<(), String> {
        for family in flow.families.clone() {
            let attempt = self.attempt(flow, family)?;
            let Wanted::Backends(backends, _) = &attempt.wanted else {
                return Err("sticky to no pods?".to_owned());
            };
            let found =
                self.datapath.stick(&attempt).map_err(|why| format!("{family:?}: {why}"))?;
            let known = backends.iter().find(|(pod, _)| *pod == found);
            let pod = known.ok_or(format!("{family:?}: {found} is not one of {backends:?}"))?.0;
            self.found.insert((name.to_owned(), family), pod);
        }
        Ok(())
    }

    fn balanced(&self, flow: &Flow) -> Result<(), String> {
        for family in &flow.families {
            let attempt = self.attempt(flow, *family)?;
            let Wanted::Backends(backends, _) = &attempt.wanted else {
                return Err("balanced over no pods?".to_owned());
            };
            let Some(world) = self.datapath.world() else {
                // Which pods there are is seen without packets; how often each is drawn is not.
                let seen = self.datapath.reach(std::slice::from_ref(&attempt)).remove(0);
                if !attempt.wanted.is_met_by(&seen) {
                    return Err(format!("{family:?}: {}", list(&seen)));
                }
                continue;
            };
            let answers = answers(world, &attempt, backends.len() * BALANCED_CONNECTIONS)?;
            let count = |pod: &str| answers.iter().filter(|it| *it == pod).count();
            let counts: Vec<usize> = backends.iter().map(|(pod, _)| count(pod)).collect();
            if counts.iter().sum::<usize>() != answers.len() {
                return Err(format!("{family:?}: others than {backends:?} answered"));
            }
            let counts: Vec<u32> =
                counts.into_iter().filter_map(|it| u32::try_from(it).ok()).collect();
            if !is_balanced(&counts) {
                let statistic = chi_square(&counts);
                return Err(format!(
                    "{family:?}: unequal shares {counts:?}, chi-square {statistic}"
                ));
            }
        }
        Ok(())
    }

    fn open(&mut self, name: &str, flow: &Flow) -> Result<(), String> {
        for family in &flow.families {
            let attempt = self.attempt(flow, *family)?;
            let Some(world) = self.datapath.world() else { continue };
            let source = attempt.source.address(attempt.to.ip());
            let connection = world
                .home(attempt.source)
                .run(|| Open::connect(source, attempt.to, attempt.protocol, ANSWER));
            let mut connection = connection.map_err(|error| format!("{family:?}: {error}"))?;
            let patience = if attempt.wanted == Wanted::Drop { SILENCE } else { ANSWER };
            let outcome = connection.ask(patience);
            let last = classify(&outcome);
            if !attempt.wanted.allows(&last) {
                return Err(format!("{family:?}: {outcome}"));
            }
            self.open.insert((name.to_owned(), *family), OpenConnection { connection, last });
        }
        Ok(())
    }

    /// Nothing expected means: the same as last time.
    fn again(&mut self, name: &str, expected: Option<&Expected>, when: When) -> Result<(), String> {
        if self.datapath.world().is_none() {
            return Ok(());
        }
        let keys: Vec<(String, Family)> =
            self.open.keys().filter(|(of, _)| of == name).cloned().collect();
        if keys.is_empty() {
            return Err(format!("no connection is called {name}"));
        }
        for key in keys {
            let family = key.1;
            let wanted = expected.map(|it| self.resolve(it, None, family)).transpose()?;
            let Some(open) = self.open.get_mut(&key) else { continue };
            let mut once = |patience| {
                let outcome = open.connection.ask(patience);
                let seen = classify(&outcome);
                let met = match &wanted {
                    Some(wanted) => wanted.allows(&seen),
                    None => seen == open.last,
                };
                if !met {
                    return Err(format!("{family:?}: {outcome}"));
                }
                open.last = seen;
                Ok(())
            };
            match when {
                When::AtOnce => once(if wanted == Some(Wanted::Drop) { SILENCE } else { ANSWER })?,
                When::Eventually => poll(LONG, || once(SILENCE))?,
            }
        }
        Ok(())
    }

    fn http(&self, step: &Step, family: Family) -> Result<(), String> {
        let Step::Http { source, address: at, port, path, status, text, .. } = step else {
            return Ok(());
        };
        let Some(world) = self.datapath.world() else { return Ok(()) };
        let server = SocketAddr::new(address(*at, family), *port);
        // These servers are brought up after the sync that is in force by now.
        poll(LONG, || {
            let page = world.home(*source).run(|| get(server, path))?;
            let has_text = text.as_ref().is_none_or(|text| page.body.contains(text));
            if page.status == *status && has_text {
                Ok(())
            } else {
                Err(format!("{family:?}: {page:?}"))
            }
        })
    }

    fn ping(&self, step: &Step, family: Family) -> Result<(), String> {
        let Step::Ping { source, address: at, expected, .. } = step else { return Ok(()) };
        let wanted = self.resolve(expected, None, family)?;
        let Some(world) = self.datapath.world() else { return Ok(()) };
        let to = address(*at, family);
        let patience = if wanted == Wanted::Drop { SILENCE } else { ANSWER };
        let outcome = world.home(*source).run(|| ping(source.address(to), to, patience));
        let seen = outcome.map_or_else(
            |error| Reach::Strange(error.to_string()),
            |it| match it {
                Echo::Answered => Reach::NotHandled,
                Echo::Refused => Reach::Rejected,
                Echo::Silence => Reach::Dropped,
            },
        );
        if wanted.allows(&seen) { Ok(()) } else { Err(format!("{family:?}: {seen}")) }
    }

    fn traffic(&mut self, name: &str, flow: &Flow) -> Result<(), String> {
        for family in &flow.families {
            let attempt = self.attempt(flow, *family)?;
            let Some(world) = self.datapath.world() else { continue };
            let traffic = Traffic::start(world, attempt)?;
            self.traffic.insert((name.to_owned(), *family), traffic);
        }
        Ok(())
    }

    fn unharmed(&mut self, name: &str) -> Result<(), String> {
        for family in Family::ALL {
            let traffic = self.traffic.remove(&(name.to_owned(), family));
            if let Some(traffic) = traffic {
                traffic.end().map_err(|why| format!("{family:?}: {why}"))?;
            }
        }
        Ok(())
    }

    fn foreign(&self, tool: Tool, rules: &str) {
        let Some(world) = self.datapath.world() else { return };
        let (program, arguments): (_, &[&str]) = match tool {
            Tool::Nft => ("nft", &["-f", "-"]),
            Tool::Iptables => ("iptables-nft-restore", &["--noflush"]),
            Tool::Ip6tables => ("ip6tables-nft-restore", &["--noflush"]),
        };
        world.node().command(program, arguments, rules);
    }

    fn remembered(&self, source: Actor, yes: bool, family: Family) -> Result<(), String> {
        match self.datapath.remembers(source, family).transpose()? {
            Some(found) if found != yes => Err(format!("{family:?}: {found}")),
            _ => Ok(()),
        }
    }

    /// What was reachable stays so while the proxy is away, and its return writes nothing.
    fn restart(&mut self, ending: Ending) -> Result<(), String> {
        self.put_in_force()?;
        self.datapath.stop(ending)?;
        self.flows(&self.last_flows).map_err(|why| format!("while the proxy is away:\n  {why}"))?;
        let writes = self.datapath.start_again()?;
        if writes.is_empty() {
            Ok(())
        } else {
            Err(format!("the restart wrote:\n    {}", writes.join("\n    ")))
        }
    }
}

fn needs_sockets(step: &Step) -> bool {
    match step {
        Step::Open(..)
        | Step::Again { .. }
        | Step::Http { .. }
        | Step::Ping { .. }
        | Step::Traffic(..)
        | Step::Unharmed(_)
        | Step::Logged(_)
        | Step::Foreign(..) => true,
        Step::Edit(_)
        | Step::Flow(_)
        | Step::Balanced(_)
        | Step::Sticky(..)
        | Step::Remembered { .. }
        | Step::Address { .. }
        | Step::Restart(_)
        | Step::Upgrade(_)
        | Step::Pause(_) => false,
    }
}

fn address(v4: Ipv4Addr, family: Family) -> IpAddr {
    match family {
        Family::V4 => v4.into(),
        Family::V6 => twin(v4).into(),
    }
}

/// Names of the pods that answer `count` connections one after the other.
pub(crate) fn answers(
    world: &World,
    attempt: &Attempt,
    count: usize,
) -> Result<Vec<String>, String> {
    let source = attempt.source.address(attempt.to.ip());
    world.home(attempt.source).run(|| {
        let one = |_| {
            let outcome = ask(source, attempt.to, attempt.protocol, ANSWER);
            if let Outcome::Answered(answer) = outcome {
                return Ok(answer.by);
            }
            Err(format!("{}: {outcome}", attempt.to))
        };
        (0..count).map(one).collect()
    })
}

/// An outcome in the words of scenarios.
pub(crate) fn classify(outcome: &Outcome) -> Reach {
    match outcome {
        Outcome::Answered(answer) if answer.by == "host" => Reach::NotHandled,
        Outcome::Answered(answer) => Reach::Backend {
            pod: answer.by.clone(),
            port: answer.port,
            // A port alone may change without masquerade, when two connections to one backend would look the same.
            masqueraded: answer.seen.ip() != answer.sent.ip(),
        },
        Outcome::Refused => Reach::Rejected,
        Outcome::TimedOut => Reach::Dropped,
        Outcome::Failed(why) => Reach::Strange(why.clone()),
    }
}

fn list(seen: &BTreeSet<Reach>) -> String {
    seen.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

/// Does as it is told.
struct Rehearsal;

impl Datapath for Rehearsal {
    fn apply(&mut self, objects: &Objects) -> Result<(), String> {
        if objects.manifest().is_empty() { Err("no objects".to_owned()) } else { Ok(()) }
    }

    fn set_address(&mut self, _: IpAddr, _: bool) -> Result<(), String> {
        Ok(())
    }

    fn reach(&self, attempts: &[Attempt]) -> Vec<BTreeSet<Reach>> {
        attempts.iter().map(|attempt| as_wanted(&attempt.wanted)).collect()
    }

    fn stick(&self, attempt: &Attempt) -> Result<String, String> {
        let Wanted::Backends(backends, _) = &attempt.wanted else {
            return Err("sticky to no pods?".to_owned());
        };
        let first = backends.first().ok_or("sticky to no pods?")?;
        Ok(first.0.to_owned())
    }

    fn remembers(&self, _: Actor, _: Family) -> Option<Result<bool, String>> {
        None
    }

    fn pass(&mut self, _: Duration) {}

    fn skip(&self, _: usize, _: &str) {}

    fn stop(&mut self, _: Ending) -> Result<(), String> {
        Ok(())
    }

    fn start_again(&mut self) -> Result<Vec<String>, String> {
        Ok(Vec::new())
    }

    fn upgrade(&mut self, _: &[String]) -> Result<(), String> {
        Ok(())
    }

    fn log(&self) -> Option<String> {
        None
    }

    fn world(&self) -> Option<&World> {
        None
    }
}

fn as_wanted(wanted: &Wanted) -> BTreeSet<Reach> {
    match wanted {
        Wanted::Reject => BTreeSet::from([Reach::Rejected]),
        Wanted::Drop => BTreeSet::from([Reach::Dropped]),
        Wanted::NotHandled => BTreeSet::from([Reach::NotHandled]),
        Wanted::Backends(backends, translation) => {
            let masqueraded = *translation == Some(Translation::Masquerade);
            let one = |(pod, port): &(&str, Option<u16>)| Reach::Backend {
                pod: (*pod).to_owned(),
                port: port.unwrap_or(1),
                masqueraded,
            };
            backends.iter().map(one).collect()
        }
    }
}
