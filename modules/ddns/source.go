package ddns

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2"

	"github.com/homeward-relay/homeward/modules/wireguard"
)

const (
	// echoInterval is how often a web service is asked, and is somebody else's.
	echoInterval = 5 * time.Minute

	// echoTimeout bounds one question.
	echoTimeout = 10 * time.Second

	// maxEcho is more than an address has.
	maxEcho = 256

	// staticInterval is how often it is looked whether a record's day is over.
	staticInterval = 10 * time.Minute

	// watchInterval is how often what is on this machine is looked at.
	watchInterval = 2 * time.Second
)

// Source is where an address comes from: exactly one of static, interface, http and
// peer.
type Source struct {
	// The address itself. It may be a placeholder.
	Static string `json:"static,omitempty"`

	// A network interface of this machine, whose address is taken: global, and on
	// Linux one that stays, so neither temporary nor deprecated, and of several
	// prefixes the newest one's. Other addresses than global ones (private, CGN, ULA)
	// are never taken.
	Interface string `json:"interface,omitempty"`

	// Web services that answer with the address that they are asked from, and nothing
	// else. They are asked over the family that is wanted, one after the other until
	// one has answered, every 5 minutes.
	HTTP []string `json:"http,omitempty"`

	// A peer of a tunnel: the address that its WireGuard last spoke from. The peer
	// needs no script for that.
	Peer string `json:"peer,omitempty"`

	// For a peer and AAAA: the host's part of another machine's address there, and the
	// length of the prefix that it shares with the peer, such as
	// `::1c2d:3eff:fe4f:5a6b/64`. The host's part may begin with the subnet's.
	Suffix string `json:"suffix,omitempty"`
}

// origin finds an address out.
type origin interface {
	// address returns the address as it is now.
	address(ctx context.Context) (netip.Addr, error)

	// interval is how often to ask.
	interval() time.Duration
}

// check returns what is wrong with the source whatever its placeholders mean.
func (s *Source) check(family family) error {
	given := 0
	for _, is := range []bool{s.Static != "", s.Interface != "", len(s.HTTP) > 0, s.Peer != ""} {
		if is {
			given++
		}
	}
	if given != 1 {
		return fmt.Errorf("%s has one source, which is static <address>, interface <name>, http <url...> or peer <name>", family.option)
	}
	if s.Static != "" && !strings.Contains(s.Static, "{") {
		if _, err := staticAddress(s.Static, family); err != nil {
			return err
		}
	}
	for _, text := range s.HTTP {
		if u, err := url.Parse(text); !strings.Contains(text, "{") && (err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https") {
			return errors.New("http takes URLs of web services that answer with the caller's address, such as https://icanhazip.com")
		}
	}
	if s.Suffix != "" {
		if s.Peer == "" || family.is4 {
			return errors.New("a suffix is for the aaaa of a peer")
		}
		if _, err := parseSuffix(s.Suffix); err != nil {
			return err
		}
	}
	return nil
}

func (s *Source) provision(ctx caddy.Context, family family) (origin, error) {
	repl := caddy.NewReplacer()
	switch {
	case s.Static != "":
		text, err := repl.ReplaceOrErr(s.Static, true, true)
		if err != nil {
			return nil, fmt.Errorf("static: %w", err)
		}
		address, err := staticAddress(text, family)
		return static(address), err
	case s.Interface != "":
		return interfaceOrigin{s.Interface, family}, nil
	case len(s.HTTP) > 0:
		var urls []string
		for _, text := range s.HTTP {
			urls = append(urls, repl.ReplaceAll(text, ""))
		}
		return newEcho(urls, family), nil
	}
	app, err := wireguard.FromContext(ctx)
	if err != nil {
		return nil, err
	}
	if !app.HasPeer(s.Peer) {
		return nil, fmt.Errorf("no tunnel has a peer %s", s.Peer)
	}
	p := &peerOrigin{app: app, name: s.Peer, family: family}
	if s.Suffix != "" {
		suffix, err := parseSuffix(s.Suffix)
		if err != nil {
			return nil, err
		}
		p.suffix = &suffix
	}
	return p, nil
}

// static is an address that does not change.
type static netip.Addr

func staticAddress(text string, family family) (netip.Addr, error) {
	address, err := netip.ParseAddr(text)
	if err != nil {
		return netip.Addr{}, fmt.Errorf("static takes an address, not %q", text)
	}
	return family.public(address)
}

func (s static) address(context.Context) (netip.Addr, error) { return netip.Addr(s), nil }
func (static) interval() time.Duration                       { return staticInterval }

// peerOrigin is where a peer speaks from.
type peerOrigin struct {
	app    *wireguard.App
	name   string
	family family
	suffix *suffix
}

func (p *peerOrigin) address(context.Context) (netip.Addr, error) {
	endpoint, heard := p.app.PeerEndpoint(p.name)
	switch {
	case heard.IsZero():
		// What is remembered from before a restart may be somebody else's by now.
		return netip.Addr{}, fmt.Errorf("peer %s has not been heard yet", p.name)
	case endpoint.Unmap().Is4() != p.family.is4 && p.family.is4:
		return netip.Addr{}, fmt.Errorf("peer %s speaks from %s, which is IPv6, so its IPv4 address is not known", p.name, endpoint)
	case endpoint.Unmap().Is4() != p.family.is4:
		return netip.Addr{}, fmt.Errorf("peer %s speaks from %s, which is IPv4, so its IPv6 address is not known; let it call this machine by IPv6, with a name that has an AAAA record", p.name, endpoint)
	}
	if p.suffix != nil {
		endpoint = p.suffix.at(endpoint)
	}
	return p.family.public(endpoint)
}

func (p *peerOrigin) interval() time.Duration { return watchInterval }

// echo asks web services.
type echo struct {
	urls   []string
	family family
	client *http.Client
}

func newEcho(urls []string, family family) *echo {
	dialer := new(net.Dialer)
	return &echo{urls, family, &http.Client{
		Timeout: echoTimeout,
		Transport: &http.Transport{
			Proxy: nil, // its address would be told
			DialContext: func(ctx context.Context, _, address string) (net.Conn, error) {
				return dialer.DialContext(ctx, "tcp"+family.network, address)
			},
			DisableKeepAlives: true, // the address may be another one by the next time
		},
	}}
}

func (e *echo) address(ctx context.Context) (netip.Addr, error) {
	var errs []error
	for _, url := range e.urls {
		address, err := e.ask(ctx, url)
		if err == nil {
			return address, nil
		}
		errs = append(errs, err)
	}
	return netip.Addr{}, errors.Join(errs...)
}

func (e *echo) ask(ctx context.Context, service string) (netip.Addr, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, service, nil)
	if err != nil {
		return netip.Addr{}, errors.New("asking for the own address: this is no URL")
	}
	host := request.URL.Host
	response, err := e.client.Do(request)
	if err != nil {
		var failed *url.Error
		if errors.As(err, &failed) {
			err = failed.Err // the URL may have a secret
		}
		return netip.Addr{}, fmt.Errorf("asking %s for the own address: %w", host, err)
	}
	defer response.Body.Close()
	body, err := io.ReadAll(io.LimitReader(response.Body, maxEcho))
	if err != nil {
		return netip.Addr{}, fmt.Errorf("asking %s for the own address: %w", host, err)
	}
	if response.StatusCode != http.StatusOK {
		return netip.Addr{}, fmt.Errorf("asking %s for the own address: %s", host, response.Status)
	}
	address, err := netip.ParseAddr(strings.TrimSpace(string(body)))
	if err != nil {
		return netip.Addr{}, fmt.Errorf("asking %s for the own address: the answer is no address alone", host)
	}
	if address, err = e.family.public(address); err != nil {
		return netip.Addr{}, fmt.Errorf("asking %s for the own address: %w", host, err)
	}
	return address, nil
}

func (*echo) interval() time.Duration { return echoInterval }
