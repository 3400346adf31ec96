package ddns

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/libdns/libdns"
	"go.uber.org/zap"

	"github.com/homeward-relay/homeward/modules/internal/redact"
)

const (
	// refreshInterval is how often a record is set although it has not changed. Some
	// providers drop what nobody sets.
	refreshInterval = 24 * time.Hour

	// firstRetry and lastRetry are the pauses after a failure. Each is twice the one
	// before.
	firstRetry = 5 * time.Second
	lastRetry  = 5 * time.Minute

	// updateTimeout bounds one attempt with the provider.
	updateTimeout = time.Minute

	// checkTimeout bounds the wait for a new address to take a connection.
	checkTimeout = 10 * time.Second

	// lookupTimeout bounds a question to DNS.
	lookupTimeout = 5 * time.Second
)

// target is the name whose records are set. Both of its families use it.
type target struct {
	name     string
	zone     string // as configured
	ttl      time.Duration
	provider libdns.RecordSetter
	hide     *redact.Secrets // the provider's
}

// record is what is known of a record, in this process. It outlives configurations, so
// that a reload does not set what is right.
type record struct {
	mu              sync.Mutex
	published       netip.Addr // invalid: not known
	doubtful        bool       // it may be another, so DNS is not to be believed either
	at              time.Time  // of the last success
	settings        string     // with which it was set
	updated, failed uint64

	setting *sync.Mutex // lets one record of a name at a time be set, by one configuration
}

// begin is for a configuration that takes the record over. One with other settings has to
// set it anew.
func (r *record) begin(settings string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.settings != "" && r.settings != settings {
		r.published, r.doubtful = netip.Addr{}, true
	}
	r.settings = settings
}

// doubt is for what may be set from now on, or not.
func (r *record) doubt() (former netip.Addr) {
	r.mu.Lock()
	defer r.mu.Unlock()
	former, r.published, r.doubtful = r.published, netip.Addr{}, true
	return former
}

var (
	recordsMu sync.Mutex
	records   = make(map[string]map[string]*record) // by name and type
)

// recordOf returns the record of a name.
func recordOf(name string, family family) *record {
	recordsMu.Lock()
	defer recordsMu.Unlock()
	name = strings.ToLower(name)
	if records[name] == nil {
		setting := new(sync.Mutex)
		records[name] = make(map[string]*record)
		for _, f := range families {
			records[name][f.record] = &record{setting: setting}
		}
	}
	return records[name][family.record]
}

// updater keeps one record right.
type updater struct {
	target *target
	family family
	from   origin
	check  int // TCP port, or noCheck

	// settings tell configurations apart that would set the record in another way.
	settings string

	record *record
	logger *zap.Logger
	emit   func(event string, u *updater, address string, err error)

	said string // the last complaint, which is not repeated

	tried    netip.Addr // the last address that was to be set
	set, ask backoff    // when it is to be tried again, and the source to be asked again
}

// backoff is a time to wait, which doubles.
type backoff struct {
	next time.Duration
	at   time.Time
}

func (b *backoff) failed() {
	b.next = min(max(2*b.next, firstRetry), lastRetry)
	b.at = time.Now().Add(b.next)
}

// run does so until ctx is done.
func (u *updater) run(ctx context.Context) {
	u.record.begin(u.settings)
	for ctx.Err() == nil {
		u.once(ctx)
		wait := u.from.interval()
		for _, at := range []time.Time{u.set.at, u.ask.at} {
			if !at.IsZero() {
				wait = min(wait, max(time.Until(at), time.Millisecond))
			}
		}
		select {
		case <-ctx.Done():
		case <-time.After(wait):
		}
	}
}

// once looks at the source, and sets the record if need be.
func (u *updater) once(ctx context.Context) {
	address, err := u.from.address(ctx)
	if err != nil {
		u.complain("the record stays as it is, since its address is not known", netip.Addr{}, err)
		u.ask.failed()
		return
	}
	u.ask = backoff{}
	if u.isRight(ctx, address) {
		u.said, u.set = "", backoff{}
		return
	}
	if address != u.tried {
		u.tried, u.set = address, backoff{}
	}
	if time.Now().Before(u.set.at) {
		return
	}
	if err := u.answers(ctx, address); err != nil {
		u.complain("the record stays as it is, since the new address does not answer", address, err)
		u.set.failed()
		return
	}
	if err := u.publish(ctx, address); err != nil {
		if ctx.Err() != nil {
			return
		}
		u.record.mu.Lock()
		u.record.failed++
		u.record.mu.Unlock()
		u.complain("setting the record has failed; it is tried again", address, err)
		u.emit("ddns.failed", u, address.String(), err)
		u.set.failed()
		return
	}
	u.said, u.set = "", backoff{}
}

// complain logs what is wrong, once for each thing.
func (u *updater) complain(message string, address netip.Addr, err error) {
	if said := message + err.Error(); said != u.said {
		u.said = said
		fields := []zap.Field{zap.Error(err)}
		if address.IsValid() {
			fields = append(fields, zap.Stringer("address", address))
		}
		u.logger.Warn(message, fields...)
	}
}

// isRight tells whether the record has the address, so that nothing is to be done. At the
// start DNS is asked for it.
func (u *updater) isRight(ctx context.Context, address netip.Addr) bool {
	u.record.mu.Lock()
	published, doubtful, at := u.record.published, u.record.doubtful, u.record.at
	u.record.mu.Unlock()
	if published.IsValid() || doubtful {
		return published == address && time.Since(at) < refreshInterval
	}
	ctx, cancel := context.WithTimeout(ctx, lookupTimeout)
	defer cancel()
	if now, err := u.lookup(ctx); err != nil || now != address {
		return false
	}
	u.remember(address)
	u.logger.Info("the record is right already", zap.Stringer("address", address))
	return true
}

func (u *updater) remember(address netip.Addr) {
	u.record.mu.Lock()
	defer u.record.mu.Unlock()
	if u.record.settings != u.settings {
		return // another configuration sets it by now
	}
	u.record.published, u.record.doubtful, u.record.at = address, false, time.Now()
}

// answers returns why an address cannot be published. One that is published is not
// doubted.
func (u *updater) answers(ctx context.Context, address netip.Addr) error {
	u.record.mu.Lock()
	published := u.record.published
	u.record.mu.Unlock()
	if u.check == noCheck || address == published {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", net.JoinHostPort(address.String(), strconv.Itoa(u.check)))
	if err != nil {
		return fmt.Errorf("%w; if nothing listens there, name another port with check, or check off", err)
	}
	conn.Close()
	return nil
}

// publish sets the record.
func (u *updater) publish(ctx context.Context, address netip.Addr) error {
	t := u.target
	u.record.setting.Lock()
	defer u.record.setting.Unlock()
	if err := ctx.Err(); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, updateTimeout)
	defer cancel()
	zone, err := t.findZone(ctx, u.logger)
	if err != nil {
		return err
	}
	former := u.record.doubt()
	records := []libdns.Record{libdns.Address{Name: libdns.RelativeName(t.name+".", zone), TTL: t.ttl, IP: address}}
	if _, err := t.provider.SetRecords(ctx, zone, records); err != nil {
		return errors.New(t.hide.Replace(err.Error()))
	}
	u.record.mu.Lock()
	u.record.updated++
	u.record.mu.Unlock()
	u.remember(address)
	fields := []zap.Field{zap.Stringer("address", address)}
	if former.IsValid() && former != address {
		fields = append(fields, zap.Stringer("former", former))
	}
	u.logger.Info("set the record", fields...)
	u.emit("ddns.updated", u, address.String(), nil)
	return nil
}
