//! Members of networks in which neighbours leave the tunnel out: flannel's
//! DirectRouting and Calico's CrossSubnet. A node whose kernel is programmed as
//! theirs is in our subnet, another behind a router; both wires are listened to.

#[path = "../support/bridge_pod.rs"]
mod bridge_pod;
mod calico;
#[path = "../support/calico_pod.rs"]
mod calico_pod;
#[path = "../support/etcd.rs"]
#[allow(dead_code, reason = "other tests need the rest")]
mod etcd;
#[path = "../support/felix.rs"]
mod felix;
mod flannel;
#[path = "../support/forms.rs"]
mod forms;
#[path = "../support/kernel_node.rs"]
#[allow(dead_code, reason = "other tests need the rest")]
mod kernel_node;
#[path = "../support/wiretap.rs"]
mod wiretap;
mod world;
