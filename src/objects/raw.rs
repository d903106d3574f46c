//! The fields of Kubernetes objects that the proxy consults, and no others.
//!
//! Unknown fields are read and dropped, so ten megabytes of annotations cost nothing that lasts. Names are the API's.

use serde::{Deserialize, Deserializer};

use super::lenient::{Field, Items, object_shape};

/// A list of anything.
pub type List<T> = Field<Items<Field<T>>>;

/// `v1` Service.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Service {
    #[serde(deserialize_with = "meta")]
    pub metadata: Meta,
    pub spec: Field<ServiceSpec>,
    pub status: Field<ServiceStatus>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ServiceSpec {
    #[serde(rename = "type")]
    pub service_type: Field<String>,
    #[serde(rename = "clusterIP")]
    pub cluster_ip: Field<String>,
    #[serde(rename = "clusterIPs")]
    pub cluster_ips: List<String>,
    pub ip_families: List<String>,
    #[serde(rename = "externalIPs")]
    pub external_ips: List<String>,
    pub load_balancer_source_ranges: List<String>,
    pub ports: List<ServicePort>,
    pub session_affinity: Field<String>,
    pub session_affinity_config: Field<SessionAffinityConfig>,
    pub external_traffic_policy: Field<String>,
    pub internal_traffic_policy: Field<String>,
    pub health_check_node_port: Field<i64>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ServicePort {
    pub name: Field<String>,
    pub protocol: Field<String>,
    pub port: Field<i64>,
    pub node_port: Field<i64>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct SessionAffinityConfig {
    #[serde(rename = "clientIP")]
    pub client_ip: Field<ClientIpConfig>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ClientIpConfig {
    pub timeout_seconds: Field<i64>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ServiceStatus {
    pub load_balancer: Field<LoadBalancerStatus>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct LoadBalancerStatus {
    pub ingress: List<LoadBalancerIngress>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct LoadBalancerIngress {
    pub ip: Field<String>,
    pub ip_mode: Field<String>,
}

/// `discovery.k8s.io/v1` EndpointSlice.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct EndpointSlice {
    #[serde(deserialize_with = "meta")]
    pub metadata: Meta,
    pub address_type: Field<String>,
    pub ports: List<EndpointPort>,
    pub endpoints: List<Endpoint>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct EndpointPort {
    pub name: Field<String>,
    pub protocol: Field<String>,
    pub port: Field<i64>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Endpoint {
    pub addresses: List<String>,
    pub node_name: Field<String>,
    pub conditions: Field<EndpointConditions>,
    pub hints: Field<EndpointHints>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct EndpointConditions {
    pub ready: Field<bool>,
    pub serving: Field<bool>,
    pub terminating: Field<bool>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct EndpointHints {
    pub for_zones: List<Hint>,
    pub for_nodes: List<Hint>,
}

/// ForZone or ForNode.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Hint {
    pub name: Field<String>,
}

/// `v1` Node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Node {
    #[serde(deserialize_with = "meta")]
    pub metadata: Meta,
    pub spec: Field<NodeSpec>,
    pub status: Field<NodeStatus>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct NodeSpec {
    #[serde(rename = "podCIDRs")]
    pub pod_cidrs: List<String>,
    #[serde(rename = "podCIDR")]
    pub pod_cidr: Field<String>,
    pub taints: List<Taint>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Taint {
    pub key: Field<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct NodeStatus {
    pub addresses: List<NodeAddress>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct NodeAddress {
    #[serde(rename = "type")]
    pub address_type: Field<String>,
    pub address: Field<String>,
}

/// `networking.k8s.io/v1` ServiceCIDR.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ServiceCidr {
    #[serde(deserialize_with = "meta")]
    pub metadata: Meta,
    pub spec: Field<ServiceCidrSpec>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ServiceCidrSpec {
    pub cidrs: List<String>,
}

/// ObjectMeta. All other labels and annotations are dropped while reading.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Meta {
    pub name: Field<String>,
    pub namespace: Field<String>,
    pub uid: Field<String>,
    pub resource_version: Field<String>,
    /// RFC 3339.
    pub creation_timestamp: Field<String>,
    /// RFC 3339.
    pub deletion_timestamp: Field<String>,
    pub labels: Field<Labels>,
    pub annotations: Field<Annotations>,
}

/// The labels that are consulted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Labels {
    #[serde(rename = "kubernetes.io/service-name")]
    pub service_name: Field<String>,
    #[serde(rename = "service.kubernetes.io/service-proxy-name")]
    pub service_proxy_name: Field<String>,
    #[serde(rename = "service.kubernetes.io/headless")]
    pub headless: Field<String>,
    #[serde(rename = "topology.kubernetes.io/zone")]
    pub zone: Field<String>,
}

/// The annotations that are consulted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Annotations {
    #[serde(rename = "endpoints.kubernetes.io/last-change-trigger-time")]
    pub last_change_trigger_time: Field<String>,
    /// Ours, on Services.
    #[serde(rename = "kube-ferry/ipvs-scheduler")]
    pub ipvs_scheduler: Field<String>,
    /// Ours, on EndpointSlices.
    #[serde(rename = "kube-ferry/ipvs-weight")]
    pub ipvs_weight: Field<String>,
}

object_shape!(
    ServiceSpec,
    ServicePort,
    SessionAffinityConfig,
    ClientIpConfig,
    ServiceStatus,
    LoadBalancerStatus,
    LoadBalancerIngress,
    EndpointPort,
    Endpoint,
    EndpointConditions,
    EndpointHints,
    Hint,
    NodeSpec,
    Taint,
    NodeStatus,
    NodeAddress,
    ServiceCidrSpec,
    Meta,
    Labels,
    Annotations,
);

/// Metadata of a wrong type is metadata without a name, which no object can be used without.
fn meta<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Meta, D::Error> {
    Ok(match Field::deserialize(deserializer)? {
        Field::Given(meta) => meta,
        Field::Absent | Field::Wrong => Meta::default(),
    })
}
