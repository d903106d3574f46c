//! Health check node ports.

use super::*;

/// Free in every test's own namespace.
const PORT: NonZeroU16 = NonZeroU16::new(32_000).unwrap();

#[test]
fn answers_count_local_endpoints_and_know_the_proxy_s_health() {
    let mut ports = Ports::new();
    assert_eq!(ports.reconcile(&[check("web", 0)]), Vec::<String>::new());
    let none = get(v4(), "/");
    assert_eq!(none.code, 503);

    ports.reconcile(&[check("web", 3)]);
    let some = request(v4(), "POST", "/any/path");
    assert_eq!(some.code, 200);
    let body = "{\n\t\"service\": {\n\t\t\"namespace\": \"default\",\n\t\t\"name\": \"web\"\n\t},\n\t\"localEndpoints\": 3,\n\t\"serviceProxyHealthy\": true\n}";
    assert_eq!(some.body, body);
    for header in [
        "content-type: application/json",
        "x-content-type-options: nosniff",
        "x-load-balancing-endpoint-weight: 3",
    ] {
        assert!(some.headers.contains(&header.to_owned()), "{:?}", some.headers);
    }
}

#[test]
fn an_unhealthy_proxy_fails_them() {
    // A period of zero: whatever is asked for is overdue at once.
    let mut ports = Ports::with_period(Duration::ZERO);
    ports.world.health.updated(Family::V4);
    ports.reconcile(&[check("web", 1)]);
    assert_eq!(get(v4(), "/").code, 200, "the node's eligibility is not considered");
    ports.world.health.queued(Family::V4);
    let response = get(v4(), "/");
    assert_eq!(response.code, 503);
    assert!(response.body.contains("\"localEndpoints\": 1,\n\t\"serviceProxyHealthy\": false"));
}

#[test]
fn a_port_closes_and_may_change_hands_at_once() {
    let mut ports = Ports::new();
    ports.reconcile(&[check("a", 1)]);
    assert_eq!(ports.reconcile(&[check("b", 1)]), Vec::<String>::new());
    assert!(get(v4(), "/").body.contains("\"name\": \"b\""));
    ports.reconcile(&[]);
    closes(v4());
    assert!(ports.servers.is_empty());
}

#[test]
fn families_are_separate_servers_on_one_port() {
    let mut ports = Ports::new();
    let v6 = HealthCheck { family: Family::V6, ..check("web", 2) };
    assert_eq!(ports.reconcile(&[check("web", 1), v6]), Vec::<String>::new());
    assert!(get(v4(), "/").body.contains("\"localEndpoints\": 1"));
    let six = SocketAddr::from((Ipv6Addr::LOCALHOST, PORT.get()));
    assert!(get(six, "/").body.contains("\"localEndpoints\": 2"));
}

#[test]
fn listeners_follow_the_addresses() {
    let mut ports = Ports::new();
    let checks = [check("web", 1)];
    let on = |last: u8| ListenOn::These(vec![IpAddr::from([127, 0, 0, last])]);
    let at = |last: u8| SocketAddr::from(([127, 0, 0, last], PORT.get()));
    ports.reconcile_on(&checks, &on(1));
    assert_eq!(get(at(1), "/").code, 200);
    assert!(TcpStream::connect(at(2)).is_err());
    ports.reconcile_on(&checks, &on(2));
    assert_eq!(get(at(2), "/").code, 200);
    closes(at(1));
    assert_eq!(ports.reconcile_on(&checks, &ListenOn::These(vec![])), Vec::<String>::new());
    assert_eq!(ports.servers.len(), 0, "no address, no listener, no error");
}

#[test]
fn a_taken_port_is_told_once_and_taken_up_when_free() {
    let mut ports = Ports::new();
    let taken = take((Ipv4Addr::UNSPECIFIED, PORT.get()).into());
    let checks = [check("web", 1)];
    let failures = ports.reconcile(&checks);
    assert_eq!(failures.len(), 1);
    let expected = format!(
        "cannot listen on 0.0.0.0:{PORT} for the health check node port of Service default/web: Address already in use"
    );
    assert!(failures[0].starts_with(&expected), "{failures:?}");
    assert_eq!(ports.reconcile(&checks), Vec::<String>::new(), "told once");
    drop(taken);
    let taken_up = || {
        ports.reconcile(&checks);
        TcpStream::connect(v4()).map_err(|error| error.to_string())
    };
    poll(LONG, taken_up).unwrap();
    assert_eq!(get(v4(), "/").code, 200);
}

struct Ports {
    world: World,
    servers: NodePortHealth,
}

impl Ports {
    fn new() -> Self {
        Ports::with_period(Duration::from_secs(30))
    }

    fn with_period(period: Duration) -> Self {
        let world = World { health: SharedHealth::new(period), ..World::new() };
        let servers = NodePortHealth::new(world.health.clone());
        Ports { world, servers }
    }

    fn reconcile(&mut self, checks: &[HealthCheck]) -> Vec<String> {
        self.reconcile_on(checks, &ListenOn::All)
    }

    fn reconcile_on(&mut self, checks: &[HealthCheck], v4: &ListenOn) -> Vec<String> {
        let failures = self.servers.reconcile(checks, v4, &ListenOn::All);
        self.world.runtime().block_on(failures).iter().map(ToString::to_string).collect()
    }
}

fn check(name: &str, local_endpoints: usize) -> HealthCheck {
    let service = ObjectName::new("default", name);
    HealthCheck { service, uid: None, family: Family::V4, port: PORT, local_endpoints }
}

fn v4() -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, PORT.get()))
}
