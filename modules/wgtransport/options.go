package wgtransport

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"
)

// option is an option of Caddy's http transport that this one refuses, always
// or with HTTP/3.
type option struct {
	caddyfile string // its name in a Caddyfile; "" if it has none
	json      string // its name in JSON, from the transport's own object
	isSet     func(*Transport) bool
	instead   string // what to do, after "…; "
}

// refusedOptions cannot work over a tunnel.
var refusedOptions = []option{
	{
		"forward_proxy_url", "forward_proxy_url",
		func(t *Transport) bool { return t.ForwardProxyURL != "" },
		"the tunnel is the way to the upstream, so remove it",
	},
	{
		"network_proxy", "network_proxy",
		func(t *Transport) bool { return len(t.NetworkProxyRaw) > 0 },
		"the tunnel is the way to the upstream, so remove it",
	},
	{
		"resolvers", "resolver",
		func(t *Transport) bool { return t.Resolver != nil },
		"names are looked up through the tunnel: give the tunnel `resolvers` in the global option wireguard",
	},
	{
		"local_address", "local_address",
		func(t *Transport) bool { return t.LocalAddress != "" },
		"connections come from the tunnel's own `address` in the global option wireguard, so remove it",
	},
	{
		"dial_fallback_delay", "dial_fallback_delay",
		func(t *Transport) bool { return t.FallbackDelay != 0 },
		"an upstream's addresses are tried one after the other within dial_timeout, so remove it",
	},
}

// refusedWithHTTP3 have no meaning for HTTP/3.
var refusedWithHTTP3 = []option{
	{
		"proxy_protocol", "proxy_protocol",
		func(t *Transport) bool { return t.ProxyProtocol != "" },
		"QUIC cannot carry the PROXY protocol; the client's address is in X-Forwarded-For",
	},
	{
		"read_timeout", "read_timeout",
		func(t *Transport) bool { return t.ReadTimeout != 0 },
		"use response_header_timeout; a dead connection is noticed within three times keepalive_interval",
	},
	{
		"write_timeout", "write_timeout",
		func(t *Transport) bool { return t.WriteTimeout != 0 },
		"a dead connection is noticed within three times keepalive_interval, so remove it",
	},
	{
		"read_buffer", "read_buffer_size",
		func(t *Transport) bool { return t.ReadBufferSize != 0 },
		"QUIC has its own buffers, so remove it",
	},
	{
		"write_buffer", "write_buffer_size",
		func(t *Transport) bool { return t.WriteBufferSize != 0 },
		"QUIC has its own buffers, so remove it",
	},
	{
		"expect_continue_timeout", "expect_continue_timeout",
		func(t *Transport) bool { return t.ExpectContinueTimeout != 0 },
		"request bodies are sent without waiting, so remove it",
	},
	{
		"max_conns_per_host", "max_conns_per_host",
		func(t *Transport) bool { return t.MaxConnsPerHost != 0 },
		"all requests for a host share one QUIC connection, so remove it",
	},
	{
		"keepalive_idle_conns", "keep_alive.max_idle_conns",
		func(t *Transport) bool { return t.KeepAlive != nil && t.KeepAlive.MaxIdleConns != 0 },
		"all requests for a host share one QUIC connection, so remove it",
	},
	{
		"keepalive_idle_conns_per_host", "keep_alive.max_idle_conns_per_host",
		func(t *Transport) bool { return t.KeepAlive != nil && t.KeepAlive.MaxIdleConnsPerHost != 0 },
		"all requests for a host share one QUIC connection, so remove it",
	},
	{
		"keepalive", "keep_alive.enabled",
		func(t *Transport) bool {
			return t.KeepAlive != nil && t.KeepAlive.Enabled != nil && !*t.KeepAlive.Enabled
		},
		"QUIC connections are always kept; `keepalive <duration>` says for how long",
	},
	{
		"tls_timeout", "tls.handshake_timeout",
		func(t *Transport) bool { return t.TLS != nil && t.TLS.HandshakeTimeout != 0 },
		"dial_timeout covers the whole handshake of QUIC, so remove it",
	},
	{
		"tls_renegotiation", "tls.renegotiation",
		func(t *Transport) bool {
			return t.TLS != nil && t.TLS.Renegotiation != "" && t.TLS.Renegotiation != "never"
		},
		"TLS 1.3 has no renegotiation, so remove it",
	},
	{
		"tls_except_ports", "tls.except_ports",
		func(t *Transport) bool { return t.TLS != nil && len(t.TLS.ExceptPorts) > 0 },
		"HTTP/3 always has TLS; give upstreams without TLS a reverse_proxy of their own",
	},
}

func (o option) refusal(name string) error {
	return fmt.Errorf("%s does not work with transport wireguard: %s", name, o.instead)
}

func (o option) refusalWithHTTP3(name string) error {
	return fmt.Errorf("%s does not work with versions 3: %s", name, o.instead)
}

var knownVersions = []string{"1.1", "2", "h2c", "3"}

// checkVersions says whether the versions of HTTP exist and go together.
func checkVersions(versions []string) error {
	for _, version := range versions {
		if !slices.Contains(knownVersions, version) {
			return fmt.Errorf("there is no HTTP version %q; versions are %s", version, strings.Join(knownVersions, ", "))
		}
	}
	if slices.Contains(versions, "3") && len(versions) > 1 {
		return errors.New("version 3 goes with no other, since nothing falls back from it; write `versions 3` alone or leave 3 out")
	}
	return nil
}

// checkOptions says whether the options can work, in words of the JSON.
func (t *Transport) checkOptions() error {
	for _, o := range refusedOptions {
		if o.isSet(t) {
			return o.refusal(o.json)
		}
	}
	if err := checkVersions(t.Versions); err != nil {
		return err
	}
	if t.http3() {
		for _, o := range refusedWithHTTP3 {
			if o.isSet(t) {
				return o.refusalWithHTTP3(o.json)
			}
		}
		if t.TLS == nil {
			return errors.New("versions 3 needs TLS: write https:// before the upstreams, or the option tls")
		}
	}
	switch t.ProxyProtocol {
	case "", "v1", "v2":
	default:
		return fmt.Errorf("there is no PROXY protocol version %q; proxy_protocol is v1 or v2", t.ProxyProtocol)
	}
	if err := t.checkPins(); err != nil {
		return err
	}
	for _, n := range numbers {
		if err := n.check(t, n.json); err != nil {
			return err
		}
	}
	return nil
}

// number is an option that must not be negative, which net/http would take for "not given".
// The interval of keep-alive probes is none: a negative one turns them off.
type number struct {
	caddyfile string // its name in a Caddyfile
	json      string // its name in JSON, from the transport's own object
	value     func(*Transport) int64
}

var numbers = []number{
	{"dial_timeout", "dial_timeout", func(t *Transport) int64 { return int64(t.DialTimeout) }},
	{"response_header_timeout", "response_header_timeout", func(t *Transport) int64 { return int64(t.ResponseHeaderTimeout) }},
	{"expect_continue_timeout", "expect_continue_timeout", func(t *Transport) int64 { return int64(t.ExpectContinueTimeout) }},
	{"read_timeout", "read_timeout", func(t *Transport) int64 { return int64(t.ReadTimeout) }},
	{"write_timeout", "write_timeout", func(t *Transport) int64 { return int64(t.WriteTimeout) }},
	{"max_conns_per_host", "max_conns_per_host", func(t *Transport) int64 { return int64(t.MaxConnsPerHost) }},
	{"max_response_header", "max_response_header_size", func(t *Transport) int64 { return t.MaxResponseHeaderSize }},
	{"read_buffer", "read_buffer_size", func(t *Transport) int64 { return int64(t.ReadBufferSize) }},
	{"write_buffer", "write_buffer_size", func(t *Transport) int64 { return int64(t.WriteBufferSize) }},
	{"keepalive", "keep_alive.idle_timeout", ofKeepAlive(func(k *reverseproxy.KeepAlive) int64 { return int64(k.IdleConnTimeout) })},
	{"keepalive_idle_conns", "keep_alive.max_idle_conns", ofKeepAlive(func(k *reverseproxy.KeepAlive) int64 { return int64(k.MaxIdleConns) })},
	{"keepalive_idle_conns_per_host", "keep_alive.max_idle_conns_per_host", ofKeepAlive(func(k *reverseproxy.KeepAlive) int64 { return int64(k.MaxIdleConnsPerHost) })},
	{"tls_timeout", "tls.handshake_timeout", func(t *Transport) int64 {
		if t.TLS == nil {
			return 0
		}
		return int64(t.TLS.HandshakeTimeout)
	}},
}

func ofKeepAlive(value func(*reverseproxy.KeepAlive) int64) func(*Transport) int64 {
	return func(t *Transport) int64 {
		if t.KeepAlive == nil {
			return 0
		}
		return value(t.KeepAlive)
	}
}

// check returns an error if the number is negative, which calls it by name.
func (n number) check(t *Transport, name string) error {
	if n.value(t) < 0 {
		return fmt.Errorf("%s must not be negative; leave it out for the default", name)
	}
	return nil
}
