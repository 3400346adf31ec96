// Package certfile is the certificate manager `file`: certificates in files that another
// program renews, read again when they change.
package certfile

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/caddyserver/caddy/v2/modules/caddytls"
	"github.com/caddyserver/certmagic"
	"go.uber.org/zap"
)

func init() { caddy.RegisterModule(new(Manager)) }

// Manager gets a certificate from files that another program renews, such as certbot,
// dehydrated or lego. Caddy's own `tls cert.pem key.pem` reads its files only when a
// configuration is loaded. This one looks at them every five seconds, and new connections
// get the new certificate, whether the files were written anew, renamed or reached by
// another symlink. Connections that there are go on.
//
// When a configuration is loaded, the files must be right. Later, what cannot be used, as
// a new certificate whose key is not there yet, is logged and tried again, and the
// certificate that there was is served on. One that has expired, or is about to, is
// logged once a day.
//
// Several in one site are a choice, such as one with an ECDSA key and one with an RSA key:
// a client gets the first that it supports and that has not expired. (Caddy has handshakes
// for a name that begin in the same instant share a certificate. A client that supports
// the other one only may then have to connect again.)
//
// For a site's name that is in none of them, Caddy gets a certificate itself, as it does
// beside `tls cert.pem key.pem`. In a site with a wildcard or without names, where clients
// would choose what Caddy gets, it does so only if `on_demand_tls` says who allows it.
//
// Caddy's own certificates come first. A site that had one from an ACME server has it
// until Caddy is restarted, which the log says. As with every manager, `default_sni` has
// no effect: clients that send no name get a certificate only where a site without names
// has one. OCSP responses are not stapled.
type Manager struct {
	// The path to the file with the certificate and those between it and its root, in
	// PEM. Required.
	Certificate string `json:"certificate,omitempty"`

	// The path to the file with the private key, in PEM. Default: the key is in the
	// certificate's file.
	Key string `json:"key,omitempty"`

	current        atomic.Pointer[tls.Certificate]
	policies       func() []*caddytls.AutomationPolicy // nil outside of a tls app
	asksPermission bool                                // of on_demand_tls, for names that clients choose
	cancel         context.CancelFunc
}

// CaddyModule returns the Caddy module information.
func (*Manager) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{
		ID:  "tls.get_certificate.file",
		New: func() caddy.Module { return new(Manager) },
	}
}

// Provision reads the files and begins to look after them.
func (m *Manager) Provision(ctx caddy.Context) error {
	if err := m.provision(ctx); err != nil {
		// There are no wireguard.Origins to give a line. Policies for the same name, as
		// of sites at two ports, must have the same managers, and would differ by them.
		return fmt.Errorf("%s: %w", strings.TrimSpace("get_certificate file "+m.Certificate+" "+m.Key), err)
	}
	return nil
}

func (m *Manager) provision(ctx caddy.Context) error {
	files, err := m.files(caddy.NewReplacer())
	if err != nil {
		return err
	}
	w := &watcher{
		files:   files,
		current: &m.current,
		logger:  ctx.Logger().With(zap.String("certificate", files.certificate), zap.String("key", files.key)),
	}
	if err := w.begin(); err != nil {
		return err
	}
	if app := appOf(ctx); app != nil {
		m.policies = policiesWith(app, m)
		m.asksPermission = app.Automation.OnDemand != nil
		w.inForce = func() bool { return isActive(app) }
		w.explain = func() { m.explain(w.logger) }
	}
	background, cancel := context.WithCancel(context.Background())
	m.cancel = cancel
	go w.run(background)
	return nil
}

const placeholderHelp = "write the path itself, or set the variable for Caddy's process, in a systemd unit with Environment= or EnvironmentFile="

// files expands the paths.
func (m *Manager) files(repl *caddy.Replacer) (files, error) {
	if m.Certificate == "" {
		return files{}, errors.New("certificate is missing; it is the path to a file in PEM, such as fullchain.pem")
	}
	certificate, err := repl.ReplaceOrErr(m.Certificate, true, true)
	if err != nil {
		return files{}, fmt.Errorf("expanding the certificate's path: %w; %s", err, placeholderHelp)
	}
	if m.Key == "" {
		return files{certificate: certificate, key: certificate}, nil
	}
	key, err := repl.ReplaceOrErr(m.Key, true, true)
	if err != nil {
		return files{}, fmt.Errorf("expanding the key's path: %w; %s", err, placeholderHelp)
	}
	return files{certificate: certificate, key: key}, nil
}

// GetCertificate returns the best certificate for a client of those in the files of m and
// of the other Managers of its site, or nil if none has the name. It reads no file.
//
// It does not leave a client that supports none of them to the next manager, since after
// the last one Caddy would order a certificate.
func (m *Manager) GetCertificate(_ context.Context, hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	var choices []certmagic.Certificate
	for _, manager := range m.site() {
		certificate := manager.current.Load()
		if hello.ServerName == "" || certificate.Leaf.VerifyHostname(hello.ServerName) == nil {
			choices = append(choices, certmagic.Certificate{Certificate: *certificate})
		}
	}
	if len(choices) == 0 {
		if m.clientsChoose(hello.ServerName) {
			return nil, errors.New("no certificate in files is for this name, and Caddy gets none for names that clients choose unless on_demand_tls says who allows it")
		}
		return nil, nil
	}
	best, err := certmagic.DefaultCertificateSelector(hello, choices)
	return &best.Certificate, err
}

// Cleanup ends looking after the files.
func (m *Manager) Cleanup() error {
	if m.cancel != nil {
		// Not waited for: a file system that has gone away would hold up a reload.
		m.cancel()
	}
	return nil
}

// UnmarshalCaddyfile sets up the manager from Caddyfile tokens. Syntax:
//
//	... file <certificate> [<key>]
//
// It stands in a site's tls block:
//
//	tls {
//		get_certificate file /etc/letsencrypt/live/example/fullchain.pem /etc/letsencrypt/live/example/privkey.pem
//	}
func (m *Manager) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	d.Next() // the manager's name
	if !d.NextArg() {
		return d.Err("get_certificate file has the path to a certificate and, unless it is in the same file, that to its key: get_certificate file fullchain.pem privkey.pem")
	}
	m.Certificate = d.Val()
	if d.NextArg() {
		m.Key = d.Val()
	}
	if d.NextArg() {
		return d.Errf("get_certificate file takes one certificate and one key, not also %q; another pair is a get_certificate line of its own", d.Val())
	}
	if d.NextBlock(0) {
		return d.Errf("get_certificate file has no option %s: both paths stand on its line", d.Val())
	}
	return nil
}

// Interface guards
var (
	_ certmagic.Manager     = (*Manager)(nil)
	_ caddy.Provisioner     = (*Manager)(nil)
	_ caddy.CleanerUpper    = (*Manager)(nil)
	_ caddyfile.Unmarshaler = (*Manager)(nil)
)
