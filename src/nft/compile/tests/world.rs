//! A compiler with a kernel, and Services to stage.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::num::NonZeroU16;

use crate::forward::{
    Backend, Frontend, FrontendAddress, FrontendKind, PortForwarding, ServiceForwarding,
    WithoutBackend,
};
use crate::kernel::Kernel;
use crate::kernel::memory::MemoryKernel;
use crate::model::{Family, Protocol, TrafficPolicy};
use crate::nft::compile::{Compiler, RowCounts};
use crate::nft::render;
use crate::nft::schema::Owner;
use crate::nft::skeleton::tests::program;

/// A compiler, its kernel, and what both should know.
pub(super) struct World {
    pub(super) compiler: Compiler,
    pub(super) kernel: MemoryKernel,
    pub(super) desired: BTreeMap<u32, ServiceForwarding>,
    pub(super) confirmed: BTreeMap<u32, ServiceForwarding>,
}

impl World {
    pub(super) fn new() -> World {
        let mut world = World {
            compiler: Compiler::new(program()),
            kernel: MemoryKernel::default(),
            desired: BTreeMap::new(),
            confirmed: BTreeMap::new(),
        };
        world.compiler.stage_skeleton(&RowCounts::default());
        world.commit();
        world
    }

    pub(super) fn stage(&mut self, owner: u32, forwarding: &ServiceForwarding) {
        self.compiler.stage(Owner(owner), forwarding);
        self.desired.insert(owner, forwarding.clone());
        self.desired.retain(|_, it| !it.ports.is_empty());
    }

    /// Returns the number of operations.
    pub(super) fn commit(&mut self) -> usize {
        let batch = self.compiler.batch();
        if let Err(error) = self.kernel.commit(&batch) {
            panic!("{error}\n{}", render::batch(&batch));
        }
        self.compiler.confirm();
        self.confirmed = self.desired.clone();
        assert_eq!(self.compiler.staged_len(), 0);
        assert!(self.compiler.batch().is_empty());
        batch.len()
    }

    pub(super) fn reject(&mut self) {
        self.compiler.rollback();
        self.desired = self.confirmed.clone();
        assert!(self.compiler.batch().is_empty());
    }

    pub(super) fn adopt(&mut self) {
        let observed = self.kernel.observe(&program()).unwrap();
        self.compiler = Compiler::adopt(program(), observed);
    }

    pub(super) fn restart(&mut self) {
        self.adopt();
        self.stage_everything();
    }

    pub(super) fn stage_everything(&mut self) {
        self.compiler.stage_skeleton(&RowCounts::default());
        for (owner, forwarding) in &self.desired {
            self.compiler.stage(Owner(*owner), forwarding);
        }
        self.compiler.stage_prune();
    }
}

/// A TCP port with a cluster IP, a load-balancer address and a NodePort.
pub(super) fn web(endpoints: &[u32], affinity: Option<u32>) -> ServiceForwarding {
    let frontend = |at, kind| Frontend {
        at,
        kind,
        policy: TrafficPolicy::Cluster,
        without_backend: WithoutBackend::Served,
        source_ranges: None,
    };
    let port = NonZeroU16::new(80).unwrap();
    let at = |address: &str| FrontendAddress::Address(address.parse().unwrap(), port);
    let frontends = vec![
        frontend(at("10.96.0.1"), FrontendKind::ClusterIp),
        frontend(at("192.0.2.1"), FrontendKind::LoadBalancerIp),
        frontend(
            FrontendAddress::NodePort(NonZeroU16::new(30_001).unwrap()),
            FrontendKind::NodePort,
        ),
    ];
    let port = PortForwarding {
        family: Family::V4,
        port_name: "http".into(),
        protocol: Protocol::Tcp,
        frontends,
        cluster: endpoints.iter().copied().map(backend).collect(),
        local: Vec::new(),
        hairpin: Vec::new(),
        serving: Vec::new(),
        weights: Vec::new(),
        affinity,
    };
    ServiceForwarding { ports: vec![port], health_check: None, ipvs_scheduler: None }
}

/// With a cluster IP only.
pub(super) fn service(number: u32, endpoints: &[u32], affinity: Option<u32>) -> ServiceForwarding {
    let mut service = web(endpoints, affinity);
    service.ports[0].frontends.truncate(1);
    let port = NonZeroU16::new(80).unwrap();
    service.ports[0].frontends[0].at =
        FrontendAddress::Address(address(0x0a70_0000 + number), port);
    service
}

pub(super) fn backend(number: u32) -> Backend {
    Backend { address: address(0x0a01_0000 + number), port: NonZeroU16::new(8080).unwrap() }
}

pub(super) fn address(number: u32) -> IpAddr {
    IpAddr::V4(number.into())
}
