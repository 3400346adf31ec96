package certfile

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"slices"
	"sync/atomic"
	"time"

	"go.uber.org/zap"
)

const (
	// interval is the time between two looks at the files. fsnotify would tell sooner,
	// but of the folder that it was told to watch, and neither of one that a symlink on
	// the way leads to since then nor of what happens on another machine's disk.
	interval = 5 * time.Second

	// A certificate is about to expire in the last tenth of its life, or the last two
	// weeks if they are shorter. Programs that renew begin at a third.
	lastPart = 10
	lastTime = 14 * 24 * time.Hour

	// reminder is the time between two log lines about the same certificate.
	reminder = 24 * time.Hour
)

// watcher looks after files. Only its begin and then its run use it.
type watcher struct {
	files   files
	current *atomic.Pointer[tls.Certificate] // what is served
	logger  *zap.Logger

	// inForce reports whether the configuration is in force, and explain is called once
	// it is and with each new certificate. If nil, it never is.
	inForce func() bool
	explain func()

	seen    look   // when the current certificate was read
	problem string // with the files, or empty
	told    bool   // the log has the problem

	concern  string // about the certificate's validity, or empty
	reminded time.Time

	// explaining counts the looks at which the configuration was in force; at the
	// second one the former configuration has taken its own certificates away.
	explaining int
}

// begin reads the files for the first time.
func (w *watcher) begin() error {
	w.seen = w.files.look()
	certificate, err := w.files.load()
	if err != nil {
		return err
	}
	w.current.Store(certificate)
	w.logger.Info("serving certificate from files", describe(certificate.Leaf)...)
	w.remind()
	return nil
}

// run looks at the files until the context ends.
func (w *watcher) run(ctx context.Context) {
	ticker := time.NewTicker(interval)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		w.look()
		w.remind()
		if w.explaining < 2 && w.inForce != nil && w.inForce() {
			if w.explaining++; w.explaining == 2 {
				w.explain()
			}
		}
	}
}

// look reads the files if something has happened to them. After a problem it always
// does: they may be what they were before it.
func (w *watcher) look() {
	now := w.files.look()
	if w.problem == "" && now.same(w.seen) {
		return
	}
	certificate, err := w.files.load()
	if err != nil {
		w.fail(err)
		return
	}
	former := w.current.Load()
	renewed := !slices.EqualFunc(certificate.Certificate, former.Certificate, slices.Equal)
	if renewed {
		w.current.Store(certificate)
		w.concern, w.explaining = "", min(w.explaining, 1)
		w.logger.Info("serving renewed certificate from files",
			append(describe(certificate.Leaf), zap.Time("former_not_after", former.Leaf.NotAfter))...)
	} else if w.told {
		w.logger.Info("certificate files can be used again", describe(certificate.Leaf)...)
	}
	w.seen, w.problem, w.told = now, "", false
}

// fail logs a problem when it is seen for the second time: a certificate and its key are
// replaced one after the other, and a look in between shows nothing to worry about.
func (w *watcher) fail(err error) {
	if problem := err.Error(); problem != w.problem {
		w.problem, w.told = problem, false
		return
	}
	if !w.told {
		w.told = true
		w.logger.Error("certificate files cannot be used; serving the former certificate",
			append(describe(w.current.Load().Leaf), zap.Error(err))...)
	}
}

// remind logs a certificate that is not valid, or not for long.
func (w *watcher) remind() {
	leaf := w.current.Load().Leaf
	now := time.Now()
	concern, remedy := concern(leaf, now)
	if concern == "" || concern == w.concern && now.Sub(w.reminded) < reminder {
		return
	}
	w.concern, w.reminded = concern, now
	w.logger.Warn(concern, append(describe(leaf), zap.Time("not_before", leaf.NotBefore), zap.String("remedy", remedy))...)
}

// concern is what there is to say about a certificate's validity, if anything.
func concern(leaf *x509.Certificate, now time.Time) (concern, remedy string) {
	const renew = "see that the program that renews it runs, and that these are the files that it writes"
	switch left := leaf.NotAfter.Sub(now); {
	case left < 0:
		return "certificate has expired", renew
	case now.Before(leaf.NotBefore):
		return "certificate is not valid yet", "see that this machine's clock is right"
	case left < min(leaf.NotAfter.Sub(leaf.NotBefore)/lastPart, lastTime):
		return "certificate is about to expire", renew
	}
	return "", ""
}

// describe is a certificate in a log line, in the words of Caddy's own.
func describe(leaf *x509.Certificate) []zap.Field {
	return []zap.Field{zap.Strings("subjects", subjects(leaf)), zap.Time("not_after", leaf.NotAfter)}
}

// subjects are the names and addresses that a certificate is for.
func subjects(leaf *x509.Certificate) []string {
	names := slices.Clone(leaf.DNSNames)
	for _, ip := range leaf.IPAddresses {
		names = append(names, ip.String())
	}
	return names
}
