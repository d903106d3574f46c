//! KubeProxyConfiguration v1alpha1: its fields, its defaults, and how files are read and written.
//!
//! In comes text, YAML or JSON; out comes an object whose unset fields have their defaults, with a notice for each
//! thing that a strict reader would have refused.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::duration::{GoDuration, string_or_nanoseconds};
use super::spelling::nearest;

pub const API_VERSION: &str = "kubeproxy.config.k8s.io/v1alpha1";
pub const KIND: &str = "KubeProxyConfiguration";

/// The object, with kube-proxy's field names. `Option` where null and zero differ.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct KubeProxyConfiguration {
    pub kind: String,
    pub api_version: String,
    pub feature_gates: BTreeMap<String, bool>,
    pub client_connection: ClientConnection,
    pub logging: Logging,
    pub hostname_override: String,
    pub bind_address: String,
    pub healthz_bind_address: String,
    pub metrics_bind_address: String,
    pub bind_address_hard_fail: bool,
    pub enable_profiling: bool,
    pub show_hidden_metrics_for_version: String,
    pub mode: String,
    pub iptables: Iptables,
    pub ipvs: Ipvs,
    pub nftables: Nftables,
    pub winkernel: Winkernel,
    pub detect_local_mode: String,
    pub detect_local: DetectLocal,
    #[serde(rename = "clusterCIDR")]
    pub cluster_cidr: String,
    pub node_port_addresses: Vec<String>,
    pub oom_score_adj: Option<i32>,
    pub conntrack: Conntrack,
    pub config_sync_period: GoDuration,
    pub port_range: String,
    pub windows_run_as_service: bool,
    /// Settings that kube-proxy does not have. kube-proxy reads a file with this block and says that it does not
    /// know it.
    #[serde(skip_serializing_if = "KubeFerry::is_default")]
    pub kube_ferry: KubeFerry,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ClientConnection {
    pub kubeconfig: String,
    pub accept_content_types: String,
    pub content_type: String,
    pub qps: f32,
    pub burst: i32,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Logging {
    pub format: String,
    #[serde(deserialize_with = "string_or_nanoseconds")]
    pub flush_frequency: GoDuration,
    pub verbosity: u32,
    pub vmodule: Vec<VModule>,
    pub options: LoggingOptions,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct VModule {
    pub file_pattern: String,
    pub verbosity: u32,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct LoggingOptions {
    pub text: OutputRouting,
    pub json: OutputRouting,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct OutputRouting {
    pub split_stream: bool,
    /// A Kubernetes quantity: a number or a string such as `64Ki`.
    pub info_buffer_size: Value,
}

impl Default for OutputRouting {
    fn default() -> Self {
        OutputRouting { split_stream: false, info_buffer_size: Value::from("0") }
    }
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Iptables {
    pub masquerade_bit: Option<i32>,
    pub masquerade_all: bool,
    pub localhost_node_ports: Option<bool>,
    pub sync_period: GoDuration,
    pub min_sync_period: GoDuration,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Ipvs {
    pub sync_period: GoDuration,
    pub min_sync_period: GoDuration,
    pub scheduler: String,
    #[serde(rename = "excludeCIDRs")]
    pub exclude_cidrs: Vec<String>,
    #[serde(rename = "strictARP")]
    pub strict_arp: bool,
    pub tcp_timeout: GoDuration,
    pub tcp_fin_timeout: GoDuration,
    pub udp_timeout: GoDuration,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Nftables {
    pub masquerade_bit: Option<i32>,
    pub masquerade_all: bool,
    pub sync_period: GoDuration,
    pub min_sync_period: GoDuration,
}

/// Of no use on Linux; read so that it is not taken for a spelling mistake.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Winkernel {
    pub network_name: String,
    pub source_vip: String,
    #[serde(rename = "enableDSR")]
    pub enable_dsr: bool,
    pub root_hns_endpoint_name: String,
    pub forward_health_check_vip: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct DetectLocal {
    pub bridge_interface: String,
    pub interface_name_prefix: String,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Conntrack {
    pub max_per_core: Option<i32>,
    pub min: Option<i32>,
    pub tcp_established_timeout: Option<GoDuration>,
    pub tcp_close_wait_timeout: Option<GoDuration>,
    pub tcp_be_liberal: bool,
    pub udp_timeout: GoDuration,
    pub udp_stream_timeout: GoDuration,
}

/// Our own settings: the optional block `kubeFerry`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct KubeFerry {
    /// Directory of manifests to take objects from instead of an API server; as `--manifests`. Default: none.
    pub manifests: String,
    /// Let the kernel refuse changes of our tables by others, if it can; as `--own-tables`. Default: true.
    pub own_tables: bool,
    /// IPVS mode: how long an endpoint that is gone may keep its connections; as `--ipvs-drain-timeout`. Default: 15m.
    pub ipvs_drain_timeout: GoDuration,
}

impl Default for KubeFerry {
    fn default() -> Self {
        KubeFerry {
            manifests: String::new(),
            own_tables: true,
            ipvs_drain_timeout: GoDuration::from_secs(15 * 60),
        }
    }
}

impl KubeFerry {
    fn is_default(&self) -> bool {
        *self == KubeFerry::default()
    }
}

/// Why a file is of no use.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum FileError {
    #[error("it is empty; expected {KIND} of {API_VERSION}")]
    Empty,
    #[error("it is neither YAML nor JSON: {0}")]
    Syntax(String),
    #[error("its kind is {kind:?} of {api_version:?}; expected {KIND} of {API_VERSION}")]
    Kind { kind: String, api_version: String },
    #[error("fields have wrong types: {0}")]
    Type(String),
}

/// Reads a file's text. Also returns what a strict reader would have refused: duplicate and unknown fields.
pub fn read(text: &str) -> Result<(KubeProxyConfiguration, Vec<String>), FileError> {
    let mut notices = Vec::new();
    let documents = match parse(text, serde_saphyr::DuplicateKeyPolicy::Error) {
        Ok(documents) => documents,
        Err(strict) => {
            let documents = parse(text, serde_saphyr::DuplicateKeyPolicy::LastWins)
                .map_err(FileError::Syntax)?;
            notices.push(format!("a field is set twice, the last one counts: {strict}"));
            documents
        }
    };
    // kube-proxy reads the first document and does not look at what follows.
    let mut documents = documents.into_iter();
    let mut value = documents.next().unwrap_or_default();
    let more = documents.count();
    if more > 0 {
        notices.push(format!("only the first of {} documents counts", more + 1));
    }
    remove_nulls(&mut value);
    if value.is_null() {
        return Err(FileError::Empty);
    }
    check_kind(&value)?;
    unknown_fields(&value, &shape(), "", &mut notices);
    match serde_json::from_value(value.clone()) {
        Ok(configuration) => Ok((configuration, notices)),
        Err(error) => {
            let mut wrong = Vec::new();
            wrong_fields(&value, &mut Vec::new(), &mut wrong);
            // Each field alone is good: the message for the whole has to do.
            Err(FileError::Type(if wrong.is_empty() {
                error.to_string()
            } else {
                wrong.join("; ")
            }))
        }
    }
}

/// Fields that are refused, each by its path: every field has a default, so each can be tried alone.
fn wrong_fields(value: &Value, path: &mut Vec<String>, wrong: &mut Vec<String>) {
    if let Value::Object(fields) = value
        && !fields.is_empty()
    {
        for (name, field) in fields {
            path.push(name.clone());
            wrong_fields(field, path, wrong);
            path.pop();
        }
        return;
    }
    let alone = path.iter().rev().fold(value.clone(), |value, name| {
        Value::Object([(name.clone(), value)].into_iter().collect())
    });
    if let Err(error) = serde_json::from_value::<KubeProxyConfiguration>(alone) {
        wrong.push(format!("{}: {error}", path.join(".")));
    }
}

/// All documents of the text that are not empty.
fn parse(text: &str, duplicates: serde_saphyr::DuplicateKeyPolicy) -> Result<Vec<Value>, String> {
    let options = serde_saphyr::options! { duplicate_keys: duplicates };
    serde_saphyr::from_str_multiple_with_options(text, options)
        // The other wording gives advice to who programs with the library.
        .map_err(|error| error.render_with_formatter(&serde_saphyr::UserMessageFormatter))
}

/// In Kubernetes' decoders null means "not set".
fn remove_nulls(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            fields.retain(|_, field| !field.is_null());
            fields.values_mut().for_each(remove_nulls);
        }
        Value::Array(items) => items.iter_mut().for_each(remove_nulls),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

fn check_kind(value: &Value) -> Result<(), FileError> {
    let text = |field| value.get(field).and_then(Value::as_str).unwrap_or_default().to_owned();
    let (kind, api_version) = (text("kind"), text("apiVersion"));
    if kind == KIND && api_version == API_VERSION {
        Ok(())
    } else {
        Err(FileError::Kind { kind, api_version })
    }
}

/// An object with every field that exists, to compare a file's fields with.
fn shape() -> Value {
    let every = KubeProxyConfiguration {
        logging: Logging { vmodule: vec![VModule::default()], ..Logging::default() },
        kube_ferry: KubeFerry {
            manifests: "-".to_owned(),
            own_tables: false,
            ..KubeFerry::default()
        },
        ..KubeProxyConfiguration::default()
    };
    serde_json::to_value(every).unwrap_or_default()
}

fn unknown_fields(value: &Value, shape: &Value, path: &str, notices: &mut Vec<String>) {
    match (value, shape) {
        // The only map with free keys is featureGates; its shape has none.
        (Value::Object(_), Value::Object(known)) if known.is_empty() => {}
        (Value::Object(fields), Value::Object(known)) => {
            for (name, field) in fields {
                let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
                match known.get(name) {
                    Some(shape) => unknown_fields(field, shape, &path, notices),
                    None => notices.push(unknown_field(&path, nearest(name, known.keys()))),
                }
            }
        }
        (Value::Array(items), Value::Array(known)) => {
            if let Some(shape) = known.first() {
                items.iter().for_each(|item| unknown_fields(item, shape, path, notices));
            }
        }
        _ => {}
    }
}

fn unknown_field(path: &str, meant: Option<&String>) -> String {
    let hint = meant.map(|name| format!(" (is {name:?} meant?)")).unwrap_or_default();
    format!("unknown field {path:?} is left out{hint}")
}

impl KubeProxyConfiguration {
    /// An empty object with all defaults, what flags are laid over.
    pub fn defaulted() -> Self {
        let mut configuration = KubeProxyConfiguration::default();
        configuration.set_defaults();
        configuration
    }

    /// Gives unset fields their defaults, as the API type does it; those of the platform come later.
    pub fn set_defaults(&mut self) {
        KIND.clone_into(&mut self.kind);
        API_VERSION.clone_into(&mut self.api_version);
        default_text(&mut self.bind_address, "0.0.0.0");
        let v6 = self.bind_address.contains(':');
        set_address(
            &mut self.healthz_bind_address,
            if v6 { "::" } else { "0.0.0.0" },
            HEALTHZ_PORT,
        );
        set_address(
            &mut self.metrics_bind_address,
            if v6 { "::1" } else { "127.0.0.1" },
            METRICS_PORT,
        );
        self.oom_score_adj.get_or_insert(-999);
        default_duration(&mut self.config_sync_period, 15 * 60);
        self.set_sync_defaults();
        self.set_client_and_logging_defaults();
        self.conntrack.max_per_core.get_or_insert(32 * 1024);
        self.conntrack.min.get_or_insert(128 * 1024);
        self.conntrack.tcp_established_timeout.get_or_insert(GoDuration::from_secs(24 * 3600));
        self.conntrack.tcp_close_wait_timeout.get_or_insert(GoDuration::from_secs(3600));
    }

    fn set_sync_defaults(&mut self) {
        self.iptables.masquerade_bit.get_or_insert(14);
        self.iptables.localhost_node_ports.get_or_insert(true);
        default_duration(&mut self.iptables.sync_period, 30);
        default_duration(&mut self.iptables.min_sync_period, 1);
        self.nftables.masquerade_bit.get_or_insert(14);
        default_duration(&mut self.nftables.sync_period, 30);
        default_duration(&mut self.nftables.min_sync_period, 1);
        default_duration(&mut self.ipvs.sync_period, 30);
    }

    fn set_client_and_logging_defaults(&mut self) {
        let client = &mut self.client_connection;
        default_text(&mut client.content_type, "application/vnd.kubernetes.protobuf");
        if client.qps == 0.0 {
            client.qps = 5.0;
        }
        if client.burst == 0 {
            client.burst = 10;
        }
        default_text(&mut self.logging.format, "text");
        default_duration(&mut self.logging.flush_frequency, 5);
    }

    /// What kube-proxy shows and writes: of the blocks of the modes only the active one keeps its values.
    pub fn shown(&self) -> Self {
        let mut shown = self.clone();
        if self.mode != "iptables" {
            let Iptables { masquerade_bit, localhost_node_ports, .. } = self.iptables;
            shown.iptables =
                Iptables { masquerade_bit, localhost_node_ports, ..Iptables::default() };
        }
        if self.mode != "nftables" {
            let masquerade_bit = self.nftables.masquerade_bit;
            shown.nftables = Nftables { masquerade_bit, ..Nftables::default() };
        }
        if self.mode != "ipvs" {
            shown.ipvs.sync_period = GoDuration::ZERO;
            shown.ipvs.min_sync_period = GoDuration::ZERO;
        }
        shown
    }

    /// The object as YAML, for `--write-config-to`.
    pub fn to_yaml(&self) -> Result<String, String> {
        // Through a JSON object: its fields are sorted, as in what kube-proxy writes.
        let value = serde_json::to_value(self).map_err(|error| error.to_string())?;
        serde_saphyr::to_string(&value).map_err(|error| error.to_string())
    }
}

pub(super) const HEALTHZ_PORT: u16 = 10256;
pub(super) const METRICS_PORT: u16 = 10249;

fn default_text(field: &mut String, default: &str) {
    if field.is_empty() {
        default.clone_into(field);
    }
}

fn default_duration(field: &mut GoDuration, secs: u32) {
    if field.is_zero() {
        *field = GoDuration::from_secs(secs);
    }
}

fn set_address(field: &mut String, default: &str, port: u16) {
    default_text(field, default);
    *field = with_port(field, port);
}

/// Appends a port to a bare IP; leaves everything else as it is, for validation to judge.
pub(super) fn with_port(address: &str, port: impl std::fmt::Display) -> String {
    match address.parse() {
        Ok(std::net::IpAddr::V4(ip)) => format!("{ip}:{port}"),
        Ok(std::net::IpAddr::V6(ip)) => format!("[{ip}]:{port}"),
        Err(_) => address.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: &str =
        "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n";

    #[test]
    fn json_is_read_too() {
        let text = "{\n\t\"kind\": \"KubeProxyConfiguration\",\n\t\"apiVersion\": \"kubeproxy.config.k8s.io/v1alpha1\",\n\t\"mode\": \"nftables\"\n}\n";
        assert_eq!(read(text).unwrap().0.mode, "nftables");
    }

    #[test]
    fn strictness_becomes_notices() {
        check("mode: nftables\n", &[]);
        check("modus: nftables\n", &["unknown field \"modus\" is left out (is \"mode\" meant?)"]);
        check("clusterCidr: 10.0.0.0/8\n", &["(is \"clusterCIDR\" meant?)"]);
        check(
            "conntrack: {maxpercore: 0}\n",
            &["\"conntrack.maxpercore\" is left out (is \"maxPerCore\" meant?)"],
        );
        check(
            "conntrack: {maxPerCore: 1, most: 2}\n",
            &["unknown field \"conntrack.most\" is left out"],
        );
        check(
            "logging: {vmodule: [{filePattern: a, level: 2}]}\n",
            &["unknown field \"logging.vmodule.level\""],
        );
        check("featureGates: {Anything: true}\n", &[]);
        check("mode: iptables\nmode: nftables\n", &["a field is set twice, the last one counts"]);
    }

    #[test]
    fn what_is_said_of_a_file_is_for_who_wrote_it() {
        let (_, notices) = read(&format!("{HEAD}mode: iptables\nmode: nftables\n")).unwrap();
        let said = notices.join("\n");
        assert!(said.contains("line 4") && said.contains("mode"), "{said}");
        assert!(!said.contains("Policy"), "{said}");
    }

    /// What Windows' editors leave behind.
    #[test]
    fn a_byte_order_mark_and_line_ends_of_two_bytes_do_no_harm() {
        let text = format!("\u{feff}{HEAD}mode: nftables\n").replace('\n', "\r\n");
        let (object, notices) = read(&text).unwrap();
        assert_eq!((object.mode.as_str(), notices), ("nftables", vec![]));
    }

    /// Templates end documents with a separator, and what is written for kubeadm holds several.
    #[test]
    fn the_first_document_counts() {
        let first = |text: &str| {
            let (object, notices) = read(text).unwrap();
            assert_eq!(object.mode, "nftables", "{text}");
            notices
        };
        let one = format!("{HEAD}mode: nftables\n");
        for text in
            [&one, &format!("---\n{one}---\n"), &format!("# a\n\n---\n{one}...\n---\n# b\n")]
        {
            assert_eq!(first(text), [""; 0], "{text}");
        }
        let two = format!("{one}---\nkind: KubeletConfiguration\n");
        assert_eq!(first(&two), ["only the first of 2 documents counts"]);
        refuse(
            &format!("kind: ClusterConfiguration\n---\n{one}"),
            "its kind is \"ClusterConfiguration\"",
        );
    }

    #[test]
    fn useless_files_are_errors() {
        for empty in ["", "---\n", "# nothing yet\n"] {
            refuse(empty, "it is empty; expected KubeProxyConfiguration");
        }
        refuse("mode: nftables\n", "its kind is \"\"");
        refuse("kind: ConfigMap\napiVersion: v1\n", "its kind is \"ConfigMap\" of \"v1\"");
        refuse("kind: [\n", "neither YAML nor JSON");
        refuse(&format!("{HEAD}conntrack: 5\n"), "wrong types: conntrack: invalid type");
        refuse(
            &format!("{HEAD}conntrack: {{udpTimeout: 5}}\n"),
            "conntrack.udpTimeout: invalid type",
        );
        refuse(
            &format!("{HEAD}conntrack: {{min: x, maxPerCore: 1}}\noomScoreAdj: []\n"),
            "conntrack.min: invalid type: string \"x\", expected i32; oomScoreAdj: invalid type",
        );
        refuse(&format!("{HEAD}conntrack: {{udpTimeout: 5 s}}\n"), "invalid duration");
        refuse(&format!("{HEAD}nodePortAddresses: primary\n"), "wrong type");
    }

    #[test]
    fn defaults_are_those_of_the_reference() {
        let defaults = KubeProxyConfiguration::defaulted();
        insta::assert_snapshot!(defaults.to_yaml().unwrap());
    }

    #[test]
    fn default_addresses_follow_the_family_of_the_bind_address() {
        let (mut file, _) = read(&format!("{HEAD}bindAddress: '::'\n")).unwrap();
        file.set_defaults();
        assert_eq!(file.healthz_bind_address, "[::]:10256");
        assert_eq!(file.metrics_bind_address, "[::1]:10249");
    }

    #[test]
    fn what_is_written_can_be_read_again() {
        let written = KubeProxyConfiguration::defaulted().to_yaml().unwrap();
        let (read, notices) = read(&written).unwrap();
        assert_eq!((read, notices), (KubeProxyConfiguration::defaulted(), vec![]));
    }

    #[track_caller]
    fn check(body: &str, expected: &[&str]) {
        let (_, notices) = read(&format!("{HEAD}{body}")).unwrap();
        assert_eq!(notices.len(), expected.len(), "{notices:?}");
        for (notice, part) in notices.iter().zip(expected) {
            assert!(notice.contains(part), "{notice}");
        }
    }

    #[track_caller]
    fn refuse(text: &str, part: &str) {
        let error = read(text).unwrap_err().to_string();
        assert!(error.contains(part), "{error}");
    }
}
