//! ARP (RFC 826): the gateway holds every address but the pod's own.
