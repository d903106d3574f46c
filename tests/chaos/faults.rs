//! Everything that goes wrong on purpose.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::support::apiserver::{ApiServer, Ask, Fault, On};
use crate::support::command;
use crate::support::dice::Dice;
use crate::support::namespace::Namespace;
use crate::support::world::OWN_RULES;

const RESOURCES: [&str; 4] = ["services", "endpointslices", "nodes", "servicecidrs"];

/// What befalls the API server or the way to it; what it was.
pub(super) fn befall(server: &ApiServer, dice: &mut Dice) -> String {
    match dice.below(12) {
        0 => {
            server.go_down();
            "the API server goes down".to_owned()
        }
        1 | 2 => {
            server.come_up();
            "the API server comes up".to_owned()
        }
        3 => {
            server.compact();
            server.drop_connections();
            "the history is lost".to_owned()
        }
        4 => {
            server.freeze_connections();
            "connections are half-open".to_owned()
        }
        5 => {
            server.drop_connections();
            "connections are closed".to_owned()
        }
        _ => {
            let on = On(dice.of(&RESOURCES), Ask::Any);
            let faults: Vec<Fault> = (0..=dice.below(3)).map(|_| fault(dice)).collect();
            let told = format!("{}: {faults:?}", on.0);
            server.fail_next(on, faults);
            // Nobody asks anew while a watch goes on.
            server.drop_connections();
            told
        }
    }
}

fn fault(dice: &mut Dice) -> Fault {
    let after = dice.below(4);
    let line =
        dice.of(&["{\"type\":\"ADDED\",\"object\":{\"metad", "<html>Bad Gateway</html>", "null"]);
    match dice.below(12) {
        0 => Fault::Status(410, None),
        1 => Fault::Status(429, Some(1)),
        2 => Fault::Status(500, None),
        3 => Fault::ErrorEvent(410),
        4 => Fault::ErrorEvent(500),
        5 => Fault::DropConnection,
        6 => Fault::Delay(Duration::from_millis(100 * dice.below(15) as u64)),
        7 => Fault::Cut { after, clean: true },
        8 => Fault::Cut { after, clean: false },
        9 => Fault::Insert { after, line: line.to_owned() },
        10 => Fault::LoginPage,
        _ => Fault::Repeat,
    }
}

/// What somebody else does to our tables, as input of `nft`.
pub(super) fn damage(dice: &mut Dice) -> String {
    let family = dice.of(&["ip", "ip6"]);
    let table = format!("{family} kube-ferry");
    let fixed = if family == "ip" { "10.96.0.100" } else { "fd00:10:96::100" };
    match dice.below(12) {
        0 | 1 => format!("delete table {table}"),
        // What this world needs stays.
        2 | 3 => format!("flush ruleset\n{OWN_RULES}"),
        4 => format!("delete element {table} endpoints {{ {fixed} . tcp . 80 . 0 }}"),
        5 => format!("delete element {table} frontends {{ {fixed} . tcp . 80 }}"),
        6 => format!(
            "add element {table} cluster-ips {{ {} }}",
            if family == "ip" { "10.96.0.99" } else { "fd00:10:96::99" }
        ),
        7 => format!("flush map {table} endpoints"),
        8 => format!("flush chain {table} services"),
        9 => format!("flush table {table}"),
        10 => format!("add rule {table} filter-input drop"),
        _ => format!("add chain {table} theirs\nadd rule {table} services jump theirs"),
    }
}

/// Does damage. `Ok(false)`: the kernel protects our tables from others, or what was to be damaged is not there.
pub(super) fn inflict(namespace: &Namespace, damage: &str) -> Result<bool, String> {
    let output = namespace.run(|| command::output("nft", &["-f", "-"], damage));
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    let expected = ["Operation not permitted", "No such file or directory"];
    match output.status.success() {
        true => Ok(true),
        false if expected.iter().any(|it| told.contains(it)) => Ok(false),
        false => Err(format!("nft refuses `{damage}`: {told}")),
    }
}

/// Changes a table of its own while `is_busy`, as fast as nft can, until `end`.
pub(super) fn disturb(namespace: &Namespace, is_busy: &AtomicBool, end: &AtomicBool) {
    let transactions = [
        "add table ip theirs\nadd chain ip theirs c\nadd rule ip theirs c counter",
        "add set ip theirs s { type ipv4_addr; }\nadd element ip theirs s { 192.0.2.7 }",
        "delete table ip theirs",
    ];
    namespace.run(|| {
        for transaction in transactions.iter().cycle() {
            while !is_busy.load(Ordering::SeqCst) {
                if end.load(Ordering::SeqCst) {
                    return;
                }
                std::thread::sleep(Duration::from_millis(20));
            }
            // It may fail half-way through, when somebody has flushed everything.
            command::output("nft", &["-f", "-"], transaction);
        }
    });
}
