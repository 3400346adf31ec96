package wgtransport

import (
	"fmt"
	"net/http"
	"slices"
	"strings"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"
)

// checkUpstreams finds upstreams that no tunnel can reach. The proxy that the
// transport belongs to is in ctx; where it is not, or has its upstreams from
// elsewhere, the error comes with the dial.
func (t *Transport) checkUpstreams(ctx caddy.Context) error {
	if t.Tunnel != "" {
		// A placeholder is any host: only the tunnel is checked.
		if err := t.tunnels.Check("{upstream}", t.Tunnel); err != nil {
			return err
		}
	}
	proxy := proxyIn(ctx)
	if proxy == nil {
		return nil
	}
	for _, upstream := range proxy.Upstreams {
		if err := t.checkUpstream(upstream.Dial); err != nil {
			return fmt.Errorf("upstream %s: %w", upstream.Dial, err)
		}
	}
	if proxy.DynamicUpstreamsRaw != nil {
		t.logger.Warn("dynamic upstreams are looked up by this machine's DNS servers, not through the tunnel")
	}
	if proxy.HealthChecks != nil && proxy.HealthChecks.Active != nil && proxy.HealthChecks.Active.IsEnabled() {
		return t.checkHealthCheck(proxy, proxy.HealthChecks.Active)
	}
	return nil
}

func proxyIn(ctx caddy.Context) *reverseproxy.Handler {
	for _, module := range slices.Backward(ctx.Modules()) {
		if proxy, ok := module.(*reverseproxy.Handler); ok {
			return proxy
		}
	}
	return nil
}

func (t *Transport) checkUpstream(dial string) error {
	dial = caddy.NewReplacer().ReplaceKnown(dial, "")
	if strings.Contains(dial, "{") {
		return nil
	}
	address, err := caddy.ParseNetworkAddress(dial)
	if err != nil {
		return err
	}
	if address.Network != "tcp" {
		return errNetwork
	}
	return t.tunnels.Check(address.Host, t.Tunnel)
}

// checkHealthCheck refuses active health checks that would ask for no host and
// so fail, and take the upstream out of service with them.
func (t *Transport) checkHealthCheck(proxy *reverseproxy.Handler, check *reverseproxy.ActiveHealthChecks) error {
	dials := make([]string, 0, len(proxy.Upstreams))
	for _, upstream := range proxy.Upstreams {
		dials = append(dials, upstream.Dial)
	}
	if check.Upstream != "" {
		if err := t.checkUpstream(check.Upstream); err != nil {
			return fmt.Errorf("health_upstream %s: %w", check.Upstream, err)
		}
		dials = []string{check.Upstream}
	}
	if t.TLS == nil || t.TLS.ServerName != "" || !t.verifiesName() || hasHost(check.Headers) {
		return nil
	}
	for _, dial := range dials {
		address, err := caddy.ParseNetworkAddress(dial)
		if err != nil || !nameless(address.Host) || slices.Contains(t.TLS.ExceptPorts, fmt.Sprint(address.StartPort)) {
			continue
		}
		return fmt.Errorf("the active health check of upstream %s asks for no host, so it is not known for which name to verify the certificate; add `health_headers { Host <name> }` to the reverse_proxy, or tls_server_name to the transport", dial)
	}
	return nil
}

func hasHost(header http.Header) bool {
	for name := range header {
		if http.CanonicalHeaderKey(name) == "Host" {
			return true
		}
	}
	return false
}
