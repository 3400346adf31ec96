package wgtransport

import (
	"encoding/json"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"
)

var update = flag.Bool("update", false, "write the JSON that fixtures without any adapt to")

// TestAdapt adapts each Caddyfile in testdata/adapt to the JSON, or to the
// error, that stands below it.
func TestAdapt(t *testing.T) {
	files, err := filepath.Glob("testdata/adapt/*.caddyfiletest")
	if err != nil || len(files) == 0 {
		t.Fatalf("no fixtures: %v", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".caddyfiletest"), func(t *testing.T) {
			content, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			input, want, _ := strings.Cut(string(content), "----------\n")
			want = strings.TrimSpace(want)
			got, _, err := caddyconfig.GetAdapter("caddyfile").Adapt([]byte(input), map[string]any{"filename": "Caddyfile"})
			if err != nil {
				if strings.HasPrefix(want, "{") || want == "" || !strings.Contains(err.Error(), want) {
					t.Errorf("error %q, want %q", err, want)
				}
				return
			}
			transport := transportOf(t, got)
			if *update && want == "" {
				if err := os.WriteFile(file, []byte(input+"----------\n"+transport+"\n"), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			if transport != want {
				t.Errorf("got\n%s\nwant\n%s", transport, want)
			}
		})
	}
}

// transportOf is the JSON of the first proxy's transport.
func transportOf(t *testing.T, config []byte) string {
	t.Helper()
	var parsed any
	if err := json.Unmarshal(config, &parsed); err != nil {
		t.Fatal(err)
	}
	found := find(parsed, "transport")
	if found == nil {
		t.Fatalf("no transport in %s", config)
	}
	delete(found.(map[string]any), "origins") // see TestOrigin
	text, err := json.MarshalIndent(found, "", "\t")
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func find(value any, key string) any {
	switch value := value.(type) {
	case map[string]any:
		if found, ok := value[key]; ok {
			return found
		}
		for _, inner := range value {
			if found := find(inner, key); found != nil {
				return found
			}
		}
	case []any:
		for _, inner := range value {
			if found := find(inner, key); found != nil {
				return found
			}
		}
	}
	return nil
}

// TestEveryOptionDecided: an option that a later Caddy adds to its transport
// fails here until it is decided whether it works over a tunnel.
func TestEveryOptionDecided(t *testing.T) {
	decided := []string{
		// refused, see refusedOptions
		"resolver", "forward_proxy_url", "dial_fallback_delay", "local_address", "network_proxy",
		// http.Transport, http3.Transport
		"compression", "max_conns_per_host", "response_header_timeout", "expect_continue_timeout",
		"max_response_header_size", "write_buffer_size", "read_buffer_size", "versions",
		"keep_alive.enabled", "keep_alive.probe_interval", "keep_alive.max_idle_conns",
		"keep_alive.max_idle_conns_per_host", "keep_alive.idle_timeout",
		// dial.go
		"dial_timeout", "read_timeout", "write_timeout", "proxy_protocol", "tls.handshake_timeout",
		// attempt.go
		"tls.server_name", "tls.except_ports",
		// reverseproxy.TLSConfig.MakeTLSClientConfig
		"tls.ca", "tls.root_ca_pool", "tls.root_ca_pem_files", "tls.client_certificate_file",
		"tls.client_certificate_key_file", "tls.client_certificate_automate",
		"tls.insecure_skip_verify", "tls.renegotiation", "tls.curves",
	}
	var have []string
	collect(reflect.TypeFor[reverseproxy.HTTPTransport](), "", &have)
	slices.Sort(have)
	slices.Sort(decided)
	if !slices.Equal(have, decided) {
		t.Errorf("Caddy has the options\n%v\nand decided are\n%v", have, decided)
	}
}

func collect(structure reflect.Type, prefix string, names *[]string) {
	for field := range structure.Fields() {
		name, _, _ := strings.Cut(field.Tag.Get("json"), ",")
		if name == "" || name == "-" {
			continue
		}
		switch name {
		case "tls", "keep_alive":
			collect(field.Type.Elem(), prefix+name+".", names)
		default:
			*names = append(*names, prefix+name)
		}
	}
}

// TestRefusedJSON: what is refused in a Caddyfile is refused in JSON.
func TestRefusedJSON(t *testing.T) {
	for _, c := range []struct{ name, json, want string }{
		{"forward proxy", `{"forward_proxy_url": "http://127.0.0.1:1"}`, "forward_proxy_url does not work with transport wireguard"},
		{"network proxy", `{"network_proxy": {"from": "none"}}`, "network_proxy does not work"},
		{"resolver", `{"resolver": {"addresses": ["1.1.1.1"]}}`, "give the tunnel `resolvers`"},
		{"empty resolver", `{"resolver": {}}`, "resolver does not work"},
		{"local address", `{"local_address": "127.0.0.1"}`, "local_address does not work"},
		{"fallback delay", `{"dial_fallback_delay": "-1s"}`, "dial_fallback_delay does not work"},
		{"unknown option", `{"dail_timeout": "1s"}`, "dail_timeout"},
		{"unknown version", `{"versions": ["4"]}`, "no HTTP version \"4\""},
		{"3 and others", `{"tls": {}, "versions": ["2", "3"]}`, "version 3 goes with no other"},
		{"3 twice", `{"tls": {}, "versions": ["3", "3"]}`, "version 3 goes with no other"},
		{"3 without TLS", `{"versions": ["3"]}`, "needs TLS"},
		{"unknown PROXY version", `{"proxy_protocol": "v3"}`, "proxy_protocol is v1 or v2"},
		{"negative timeout", `{"dial_timeout": "-1s"}`, "dial_timeout must not be negative"},
		{"negative number", `{"max_conns_per_host": -1}`, "max_conns_per_host must not be negative"},
		{"negative idle connections", `{"keep_alive": {"max_idle_conns": -1}}`, "keep_alive.max_idle_conns must not be negative"},
		{"negative TLS timeout", `{"tls": {"handshake_timeout": "-1s"}}`, "tls.handshake_timeout must not be negative"},
		{"no tunnel", `{"tunnel": "wg9"}`, "there is no tunnel wg9"},
		{"half a client certificate", `{"tls": {"client_certificate_file": "x"}}`, "client_certificate_key_file"},
		{"bad pin", `{"tls": {}, "tls_pin": ["sha256//YhKJKSzoTt2b5FP18fvpHo7fJYqQCjAa3HWY3tvRMw=="]}`, "is not the hash of a public key"},
		{"bad pin's prefix", `{"tls": {}, "tls_pin": ["YhKJKSzoTt2b5FP18fvpHo7fJYqQCjAa3HWY3tvRMwE="]}`, "is not the hash of a public key"},
		{"pin and unverified", `{"tls": {"insecure_skip_verify": true}, "tls_pin": ["sha256//YhKJKSzoTt2b5FP18fvpHo7fJYqQCjAa3HWY3tvRMwE="]}`, "remove that, the pin replaces it"},
		{"pin and authorities", `{"tls": {"root_ca_pem_files": ["x"]}, "tls_pin": ["sha256//YhKJKSzoTt2b5FP18fvpHo7fJYqQCjAa3HWY3tvRMwE="]}`, "remove tls_trust_pool"},
		{"3 and PROXY", `{"tls": {}, "versions": ["3"], "proxy_protocol": "v2"}`, "proxy_protocol does not work with versions 3"},
		{"3 and read timeout", `{"tls": {}, "versions": ["3"], "read_timeout": "1s"}`, "read_timeout does not work with versions 3"},
		{"3 and write timeout", `{"tls": {}, "versions": ["3"], "write_timeout": "1s"}`, "write_timeout does not work with versions 3"},
		{"3 and read buffer", `{"tls": {}, "versions": ["3"], "read_buffer_size": 1}`, "read_buffer_size does not work with versions 3"},
		{"3 and write buffer", `{"tls": {}, "versions": ["3"], "write_buffer_size": 1}`, "write_buffer_size does not work with versions 3"},
		{"3 and expect", `{"tls": {}, "versions": ["3"], "expect_continue_timeout": "1s"}`, "expect_continue_timeout does not work with versions 3"},
		{"3 and connections", `{"tls": {}, "versions": ["3"], "max_conns_per_host": 1}`, "max_conns_per_host does not work with versions 3"},
		{"3 and idle connections", `{"tls": {}, "versions": ["3"], "keep_alive": {"max_idle_conns": 1}}`, "keep_alive.max_idle_conns does not work with versions 3"},
		{"3 and idle connections per host", `{"tls": {}, "versions": ["3"], "keep_alive": {"max_idle_conns_per_host": 1}}`, "keep_alive.max_idle_conns_per_host does not work with versions 3"},
		{"3 and keepalive off", `{"tls": {}, "versions": ["3"], "keep_alive": {"enabled": false}}`, "keep_alive.enabled does not work with versions 3"},
		{"3 and TLS timeout", `{"tls": {"handshake_timeout": "1s"}, "versions": ["3"]}`, "tls.handshake_timeout does not work with versions 3"},
		{"3 and renegotiation", `{"tls": {"renegotiation": "once"}, "versions": ["3"]}`, "tls.renegotiation does not work with versions 3"},
		{"3 and ports", `{"tls": {"except_ports": ["80"]}, "versions": ["3"]}`, "tls.except_ports does not work with versions 3"},
	} {
		t.Run(c.name, func(t *testing.T) {
			ctx, cancel := caddy.NewContext(caddy.Context{Context: t.Context()})
			defer cancel()
			tunneled = new(loopback)
			_, err := ctx.LoadModuleByID("http.reverse_proxy.transport.wireguard_loopback", json.RawMessage(c.json))
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %v, want %q", err, c.want)
			}
		})
	}
}

// TestOrigin: an error of Provision names the line that its transport stands
// in, even in another process, which has the JSON only.
func TestOrigin(t *testing.T) {
	d := caddyfile.NewTestDispenser("\n\nreverse_proxy https://home {\n transport wireguard wg1 {\n  dial_timeout 78s\n }\n}")
	d.Next()
	proxy := new(reverseproxy.Handler)
	if err := proxy.UnmarshalCaddyfile(d.NewFromNextSegment()); err != nil {
		t.Fatal(err)
	}
	transport := new(Transport)
	if err := json.Unmarshal(proxy.TransportRaw, transport); err != nil {
		t.Fatal(err)
	}
	wrong := errors.New("wrong")
	if err := transport.Origins.At(wrong, originTransport); err.Error() != "Testfile:4: wrong" || !errors.Is(err, wrong) {
		t.Errorf("got %v", err)
	}
}

// FuzzUnmarshalCaddyfile: no Caddyfile panics, and what is accepted is the same
// after it has been written as JSON and read again.
func FuzzUnmarshalCaddyfile(f *testing.F) {
	files, err := filepath.Glob("testdata/adapt/*.caddyfiletest")
	if err != nil {
		f.Fatal(err)
	}
	for _, file := range files {
		content, err := os.ReadFile(file)
		if err != nil {
			f.Fatal(err)
		}
		input, _, _ := strings.Cut(string(content), "----------\n")
		if at := strings.Index(input, "transport "); at >= 0 {
			f.Add(input[at+len("transport "):])
		}
	}
	f.Fuzz(func(t *testing.T, text string) {
		d := caddyfile.NewTestDispenser(text)
		transport := new(Transport)
		if err := transport.UnmarshalCaddyfile(d); err != nil {
			return
		}
		for _, o := range refusedOptions {
			if o.isSet(transport) {
				t.Errorf("%s was accepted", o.caddyfile)
			}
		}
		written, err := json.Marshal(transport)
		if err != nil {
			t.Fatal(err)
		}
		again := new(Transport)
		if err := caddy.StrictUnmarshalJSON(written, again); err != nil {
			t.Fatalf("%s: %v", written, err)
		}
		if rewritten, _ := json.Marshal(again); string(rewritten) != string(written) {
			t.Errorf("%s became %s", written, rewritten)
		}
	})
}
