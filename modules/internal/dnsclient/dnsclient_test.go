package dnsclient_test

import (
	"net"
	"strings"
	"testing"

	"github.com/miekg/dns"

	"github.com/homeward-relay/homeward/modules/internal/dnsclient"
	"github.com/homeward-relay/homeward/tests/testnet"
)

// serve answers at one port by UDP and TCP, and returns it.
func serve(t *testing.T, answer func(udp bool, m *dns.Msg)) string {
	t.Helper()
	packets, listener := testnet.ListenUDPAndTCP(t)
	for _, server := range []*dns.Server{{PacketConn: packets}, {Listener: listener}} {
		started := make(chan struct{})
		server.NotifyStartedFunc = func() { close(started) }
		server.Handler = dns.HandlerFunc(func(w dns.ResponseWriter, question *dns.Msg) {
			m := new(dns.Msg)
			m.SetReply(question)
			answer(server.PacketConn != nil, m)
			_ = w.WriteMsg(m)
		})
		go server.ActivateAndServe()
		<-started
		t.Cleanup(func() { _ = server.Shutdown() })
	}
	return packets.LocalAddr().String()
}

func record(t *testing.T, text string) dns.RR {
	t.Helper()
	rr, err := dns.NewRR(text)
	if err != nil {
		t.Fatal(err)
	}
	return rr
}

func TestAsk(t *testing.T) {
	nobody, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	closed := nobody.LocalAddr().String()
	nobody.Close()
	failing := serve(t, func(_ bool, m *dns.Msg) { m.Rcode = dns.RcodeServerFailure })
	none := serve(t, func(_ bool, m *dns.Msg) { m.Rcode = dns.RcodeNameError })
	one := serve(t, func(_ bool, m *dns.Msg) {
		m.Answer = append(m.Answer, record(t, m.Question[0].Name+" 60 IN A 192.0.2.1"))
	})
	long := serve(t, func(udp bool, m *dns.Msg) {
		m.Truncated = udp
		if !udp {
			m.Answer = append(m.Answer, record(t, m.Question[0].Name+" 60 IN A 192.0.2.2"))
		}
	})
	for _, tt := range []struct {
		name    string
		servers []string
		want    string // what the answer or the error ends with
	}{
		{"one that answers", []string{one}, "192.0.2.1"},
		{"the first that answers", []string{closed, failing, one, long}, "192.0.2.1"},
		{"no such name", []string{none, one}, ""},
		{"too long for UDP", []string{long}, "192.0.2.2"},
		{"only a failing one", []string{failing}, "answers SERVFAIL"},
		{"only one that is not there", []string{closed}, "connection refused"},
		{"none", nil, "no DNS server to ask"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			records, err := dnsclient.Ask(t.Context(), "example.org", dns.TypeA, tt.servers)
			got := ""
			switch {
			case err != nil:
				got = err.Error()
			case len(records) > 0:
				got = records[0].String()
			}
			if !strings.HasSuffix(got, tt.want) || tt.want == "" && got != "" {
				t.Errorf("%q, want …%q", got, tt.want)
			}
		})
	}
}
