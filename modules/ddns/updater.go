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
	hide     *strings.Replacer // of the provider's secrets

	mu sync.Mutex // lets one family at a time ask the provider
}

// record is what is known of a record, in this process. It outlives configurations, so
// that a reload does not set what is right.
type record struct {
	mu              sync.Mutex
	published       netip.Addr // invalid: not known
	at              time.Time  // of the last success
	updated, failed uint64
}

var (
	recordsMu sync.Mutex
	records   = make(map[[2]string]*record)
)

// recordOf returns the record of a name.
func recordOf(name string, family family) *record {
	recordsMu.Lock()
	defer recordsMu.Unlock()
	key := [2]string{strings.ToLower(name), family.record}
	if records[key] == nil {
		records[key] = new(record)
	}
	return records[key]
}

// updater keeps one record right.
type updater struct {
	target *target
	family family
	from   origin
	check  int // TCP port, or noCheck
	record *record
	logger *zap.Logger
	emit   func(event string, u *updater, address string, err error)

	said string // the last complaint, which is not repeated
}

// run does so until ctx is done.
func (u *updater) run(ctx context.Context) {
	pause := firstRetry
	for ctx.Err() == nil {
		wait, err := u.from.interval(), u.once(ctx)
		switch {
		case err == nil:
			pause = firstRetry
		case errors.Is(err, errUnknown):
			wait = min(wait, pause)
			pause = min(2*pause, lastRetry)
		default:
			wait = pause
			pause = min(2*pause, lastRetry)
		}
		select {
		case <-ctx.Done():
		case <-time.After(wait):
		}
	}
}

// errUnknown means that the source does not know the address now.
var errUnknown = errors.New("the address is not known")

// once looks at the source, and sets the record if need be.
func (u *updater) once(ctx context.Context) error {
	address, err := u.from.address(ctx)
	if err != nil {
		u.complain("the record stays as it is, since its address is not known", netip.Addr{}, err)
		return errUnknown
	}
	if u.isRight(ctx, address) {
		u.said = ""
		return nil
	}
	if err := u.answers(ctx, address); err != nil {
		u.complain("the record stays as it is, since the new address does not answer", address, err)
		return err
	}
	if err := u.publish(ctx, address); err != nil {
		if ctx.Err() != nil {
			return err
		}
		u.record.mu.Lock()
		u.record.failed++
		u.record.mu.Unlock()
		u.complain("setting the record has failed; it is tried again", address, err)
		u.emit("ddns.failed", u, address.String(), err)
		return err
	}
	u.said = ""
	return nil
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
	published, at := u.record.published, u.record.at
	u.record.mu.Unlock()
	if published.IsValid() {
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
	u.record.published, u.record.at = address, time.Now()
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
	t.mu.Lock()
	defer t.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, updateTimeout)
	defer cancel()
	zone, err := t.findZone(ctx, u.logger)
	if err != nil {
		return err
	}
	records := []libdns.Record{libdns.Address{Name: libdns.RelativeName(t.name+".", zone), TTL: t.ttl, IP: address}}
	if _, err := t.provider.SetRecords(ctx, zone, records); err != nil {
		return errors.New(t.hide.Replace(err.Error()))
	}
	u.record.mu.Lock()
	former := u.record.published
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
