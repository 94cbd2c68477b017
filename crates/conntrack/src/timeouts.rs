/// How long a connection is remembered in silence, by its state; in seconds,
/// at least [`Timeouts::MIN`]. The defaults are the kernel's
/// (`nf_conntrack_*_timeout*`) but where it says otherwise.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timeouts {
    pub tcp_syn_sent: u32,
    pub tcp_syn_recv: u32,
    pub tcp_established: u32,
    /// A connection that was joined midway and has shown one side alone
    /// (`nf_conntrack_tcp_timeout_unacknowledged`).
    pub tcp_unanswered: u32,
    pub tcp_fin_wait: u32,
    pub tcp_close_wait: u32,
    pub tcp_last_ack: u32,
    pub tcp_time_wait: u32,
    pub tcp_close: u32,
    pub udp_unanswered: u32,
    pub udp: u32,
    /// Ours: the kernel's three seconds end before an INIT is sent again
    /// (RFC 9260 section 16, RTO.Initial).
    pub sctp_opening: u32,
    pub sctp_established: u32,
    pub sctp_closing: u32,
    pub sctp_closed: u32,
    pub icmp: u32,
    pub other: u32,
    /// How long answers of a TCP or SCTP connection that a new rule forbids
    /// are taken for no new connection. Ours; longer than the longest pause
    /// before a segment is sent again (Linux' TCP_RTO_MAX, 120 s).
    pub forbidden: u32,
    /// The same of other protocols, once and for all: whoever may send is let
    /// send afterwards.
    pub forbidden_other: u32,
}

impl Timeouts {
    /// Twice what may pass until the tracker hears of a packet
    /// ([`crate::REFRESH`]).
    pub const MIN: u32 = 2;

    pub(crate) fn at_least(seconds: u32) -> u32 {
        seconds.max(Self::MIN)
    }
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            tcp_syn_sent: 120,
            tcp_syn_recv: 60,
            tcp_established: 5 * 24 * 3600,
            tcp_unanswered: 300,
            tcp_fin_wait: 120,
            tcp_close_wait: 60,
            tcp_last_ack: 30,
            tcp_time_wait: 120,
            tcp_close: 10,
            udp_unanswered: 30,
            udp: 120,
            sctp_opening: 10,
            sctp_established: 210,
            sctp_closing: 3,
            sctp_closed: 10,
            icmp: 30,
            other: 600,
            forbidden: 300,
            forbidden_other: 30,
        }
    }
}
