package wgtransport

import "github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"

// optionTLSPin is ours, and not of the embedded transport.
const optionTLSPin = "tls_pin"

// UnmarshalCaddyfile sets up the transport from Caddyfile tokens. Syntax:
//
//	transport wireguard [<tunnel>] {
//	    # HTTP
//	    versions                <1.1|2|h2c|3...>         # default 1.1 2
//	    compression             off                      # default: on
//	    max_response_header     <size>                   # default 10MiB
//	    read_buffer             <size>                   # default 4KiB
//	    write_buffer            <size>                   # default 4KiB
//
//	    # time
//	    dial_timeout            <duration>               # default 3s
//	    response_header_timeout <duration>               # default: none
//	    expect_continue_timeout <duration>               # default: none
//	    read_timeout            <duration>               # default: none
//	    write_timeout           <duration>               # default: none
//
//	    # connections
//	    keepalive               off|<duration>           # default 2m
//	    keepalive_interval      <duration>               # default 30s
//	    keepalive_idle_conns    <number>                 # default: no limit
//	    keepalive_idle_conns_per_host <number>           # default 32
//	    max_conns_per_host      <number>                 # default: no limit
//	    proxy_protocol          v1|v2                    # default: none
//
//	    # TLS, which any of these turns on, and https:// before an upstream
//	    tls
//	    tls_server_name         <name>                   # default: see Transport
//	    tls_trust_pool          <module> ...
//	    tls_trusted_ca_certs    <pem_files...>           # deprecated
//	    tls_pin                 <sha256//...>...         # default: none
//	    tls_client_auth         <automate_name> | <cert_file> <key_file>
//	    tls_insecure_skip_verify
//	    tls_timeout             <duration>               # default 10s
//	    tls_curves              <curves...>
//	    tls_renegotiation       never|once|freely        # default never
//	    tls_except_ports        <ports...>
//	}
//
// The options are those of `transport http`, and tls_pin. Its others, forward_proxy_url,
// network_proxy, resolvers, local_address and dial_fallback_delay, are errors.
func (t *Transport) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	d.Next() // consume the transport's name
	t.Origins.Note(d, originTransport)
	if d.NextArg() {
		t.Tunnel = d.Val()
		d.Delete() // the embedded transport knows no argument
		if d.NextArg() {
			return d.Errf("transport wireguard takes one tunnel, not also %q; give its options in braces, each on a line of its own", d.Val())
		}
	}

	given := make(map[string]*caddyfile.Dispenser)
	for nesting := d.Nesting(); d.NextBlock(nesting); {
		name := d.Val()
		if name == optionTLSPin {
			if err := t.unmarshalPins(d); err != nil {
				return err
			}
			continue
		}
		segment := d.NewFromNextSegment()
		segment.Next()
		given[name] = segment
		for _, o := range refusedOptions {
			if o.caddyfile == name {
				return segment.WrapErr(o.refusal(name))
			}
		}
		if err := checkArguments(name, segment); err != nil {
			return err
		}
	}

	d.Reset()
	if err := t.HTTPTransport.UnmarshalCaddyfile(d); err != nil {
		return err
	}
	t.enableTLSForPins() // before reverse_proxy compares it with http:// and https://

	if segment := given["versions"]; segment != nil {
		if err := checkVersions(t.Versions); err != nil {
			return segment.WrapErr(err)
		}
	}
	if t.http3() {
		for _, o := range refusedWithHTTP3 {
			if segment := given[o.caddyfile]; segment != nil && o.isSet(t) {
				return segment.WrapErr(o.refusalWithHTTP3(o.caddyfile))
			}
		}
	}
	for _, n := range numbers {
		if segment := given[n.caddyfile]; segment != nil {
			if err := n.check(t, n.caddyfile); err != nil {
				return segment.WrapErr(err)
			}
		}
	}
	return nil
}

// unmarshalPins reads a line with pins and takes it away, since the embedded transport
// does not know it.
func (t *Transport) unmarshalPins(d *caddyfile.Dispenser) error {
	pins := d.RemainingArgs()
	if len(pins) == 0 {
		return d.Err("tls_pin needs a pin after it, " + pinHelp)
	}
	for _, pin := range pins {
		if _, err := parsePin(pin); err != nil {
			return d.WrapErr(err)
		}
	}
	t.TLSPin = append(t.TLSPin, pins...)
	d.DeleteN(len(pins) + 1)
	return nil
}

// checkArguments finds the arguments that the embedded transport would
// misread: it takes a second argument for the next option, and what follows
// `compression` for nothing at all.
func checkArguments(name string, segment *caddyfile.Dispenser) error {
	arguments := segment.RemainingArgs()
	segment.Reset()
	segment.Next()
	switch name {
	case "versions", "tls_curves", "tls_except_ports", "tls_trusted_ca_certs", "tls_trust_pool", "tls_client_auth":
		return nil
	case "compression":
		if len(arguments) != 1 || arguments[0] != "off" && arguments[0] != "on" {
			return segment.Err("compression is on or off; it is on if nothing is said")
		}
	case "tls", "tls_insecure_skip_verify":
		if len(arguments) > 0 {
			return segment.Errf("%s takes no argument", name)
		}
	default:
		if len(arguments) > 1 {
			return segment.Errf("%s takes one argument, not %d", name, len(arguments))
		}
	}
	return nil
}
