package lab

import "testing"

func TestDropCounters(t *testing.T) {
	const snmp = `Ip: Forwarding DefaultTTL
Ip: 1 64
Udp: InDatagrams NoPorts InErrors OutDatagrams RcvbufErrors SndbufErrors InCsumErrors
Udp: 100 1 9 100 7 2 0
UdpLite: InDatagrams NoPorts InErrors OutDatagrams RcvbufErrors SndbufErrors
UdpLite: 0 0 0 0 50 60
`
	const dev = `Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed
    lo: 100 10 0 1 0 0 0 0 100 10 0 2 0 0 0 0
  eth0: 100 10 0 30 0 0 0 0 100 10 0 400 0 0 0 0
`
	const softnet = `0316f566 0000000a 00000031 00000000
02ec0f32 00000010 0000002b 00000000
`
	for _, test := range []struct {
		name string
		got  func() (float64, error)
		want float64
	}{
		{"UDP", func() (float64, error) { return udpDrops(snmp) }, 9},
		{"devices", func() (float64, error) { return deviceDrops(dev) }, 433},
		{"CPUs", func() (float64, error) { return backlogDrops(softnet) }, 26},
	} {
		if got, err := test.got(); err != nil || got != test.want {
			t.Errorf("%s: %g, %v; want %g", test.name, got, err, test.want)
		}
	}
	if _, err := udpDrops("Udp: RcvbufErrors\nUdp: many\n"); err == nil {
		t.Error("a counter that is no number is counted")
	}
}
