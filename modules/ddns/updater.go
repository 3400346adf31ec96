package ddns

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"github.com/caddyserver/certmagic"
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

	// changesAtOnce is how many updates there may be before they get pauses between
	// them, of which each is twice the one before, too.
	changesAtOnce = 3

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

// updater keeps one record right.
type updater struct {
	target *target
	family family
	from   origin
	check  int // TCP port, or noCheck

	// settings tell configurations apart that would set the record in another way.
	settings string

	record  *record
	storage certmagic.Storage
	logger  *zap.Logger
	emit    func(event string, u *updater, address netip.Addr, err error)

	// inDNS is the address that the record has in DNS.
	inDNS func(context.Context) (netip.Addr, error)

	said    string    // the last complaint
	saidAt  time.Time // and when it was made
	failing time.Time // since when nothing but complaints has come
	toldAt  time.Time // when that was told as a failure

	source  backoff    // of asking for the address
	silent  netip.Addr // the last address that did not answer
	ask     backoff    // of asking it
	refused backoff    // of asking the provider
	changes changes
}

// run does so until ctx is done, whenever the updater has the say.
func (u *updater) run(ctx context.Context) {
	for ctx.Err() == nil {
		wait := watchInterval
		if u.record.isOf(u) {
			wait = u.once(ctx)
		}
		select {
		case <-ctx.Done():
		case <-time.After(wait):
		}
	}
}

// once looks at the source, and sets the record if need be. It returns how long there is
// nothing to do.
func (u *updater) once(ctx context.Context) time.Duration {
	interval := u.from.interval()
	address, err := u.from.address(ctx)
	if err != nil {
		u.complain("the record stays as it is, since its address is not known", netip.Addr{}, err)
		u.tellLasting(netip.Addr{}, err)
		return min(u.source.failed(), interval)
	}
	u.source = backoff{}
	wait := u.refused.left()
	if address == u.silent {
		wait = max(wait, u.ask.left())
	}
	if wait > 0 {
		return min(wait, interval)
	}
	if u.isRight(ctx, address) {
		u.content()
		return interval
	}
	if wait := u.changes.wait.left(); wait > 0 {
		if !u.changes.said {
			u.changes.said = true
			u.logger.Warn("the record stays as it is for a while, since its address changes again and again; do two machines use the same key or the same name?",
				zap.Stringer("address", address), zap.Duration("wait", wait))
		}
		return min(wait, interval)
	}
	if err := u.answers(ctx, address); err != nil {
		u.complain("the record stays as it is, since the new address does not answer", address, err)
		u.tellLasting(address, err)
		if address != u.silent {
			u.silent, u.ask = address, backoff{}
		}
		return min(u.ask.failed(), interval)
	}
	u.silent = netip.Addr{}
	if err := u.publish(ctx, address); err != nil {
		if ctx.Err() != nil || !u.record.isOf(u) {
			return interval
		}
		u.complain("setting the record has failed; it is tried again", address, err)
		u.tell(address, err)
		return min(u.refused.failed(), interval)
	}
	u.content()
	u.emit("ddns.updated", u, address, nil)
	return interval
}

// complain logs what is wrong, each thing once a day, and once each time that it begins
// if that is not too often.
func (u *updater) complain(message string, address netip.Addr, err error) {
	now := time.Now()
	if u.failing.IsZero() {
		u.failing = now
	}
	said, ago := message+strings.Map(withoutDigits, err.Error()), now.Sub(u.saidAt)
	begins := u.saidAt.Before(u.failing) && ago >= lastRetry
	if said == u.said && !begins && ago < refreshInterval {
		return
	}
	u.said, u.saidAt = said, now
	fields := []zap.Field{zap.Error(err)}
	if address.IsValid() {
		fields = append(fields, zap.Stringer("address", address))
	}
	u.logger.Warn(message, fields...)
}

// withoutDigits leaves digits out: ports and times that make another error of the same
// trouble each time.
func withoutDigits(r rune) rune {
	if '0' <= r && r <= '9' {
		return -1
	}
	return r
}

// tellLasting tells of a failure that may pass by itself if it has lasted, once a day.
func (u *updater) tellLasting(address netip.Addr, err error) {
	if now := time.Now(); now.Sub(u.failing) >= lastRetry && now.Sub(u.toldAt) >= refreshInterval {
		u.toldAt = now
		u.tell(address, err)
	}
}

// tell counts a failure and emits its event.
func (u *updater) tell(address netip.Addr, err error) {
	u.record.mu.Lock()
	u.record.failed++
	u.record.mu.Unlock()
	u.emit("ddns.failed", u, address, err)
}

// content is for a record that is right.
func (u *updater) content() {
	u.failing, u.toldAt, u.refused = time.Time{}, time.Time{}, backoff{}
}

// isRight tells whether the record has the address, so that nothing is to be done. At the
// start the record is what was stored and DNS shows.
func (u *updater) isRight(ctx context.Context, address netip.Addr) bool {
	u.record.mu.Lock()
	published, doubtful, at := u.record.published, u.record.doubtful, u.record.at
	u.record.mu.Unlock()
	if published.IsValid() || doubtful {
		return published == address && isToday(at)
	}
	ctx, cancel := context.WithTimeout(ctx, lookupTimeout)
	defer cancel()
	last := u.lastSet(ctx)
	if last.Address != address {
		return false
	}
	if now, err := u.inDNS(ctx); err != nil || now != address {
		return false
	}
	u.record.set(u, address, last.Set)
	if !isToday(last.Set) {
		return false
	}
	u.logger.Info("the record is right already", zap.Stringer("address", address))
	return true
}

// isToday tells whether a time is less than a day ago, and not in the future, as it may be
// after the clock has been put right.
func isToday(at time.Time) bool {
	ago := time.Since(at)
	return 0 <= ago && ago < refreshInterval
}

// answers returns why an address cannot be published. One that is published, or was when
// last that was known, is not doubted.
func (u *updater) answers(ctx context.Context, address netip.Addr) error {
	u.record.mu.Lock()
	published := address == u.record.published || address == u.record.former
	u.record.mu.Unlock()
	if u.check == noCheck || published {
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
	select {
	case u.record.setting <- struct{}{}:
		defer func() { <-u.record.setting }()
	case <-ctx.Done():
		return ctx.Err()
	}
	if !u.record.isOf(u) {
		return errors.New("another configuration sets the record now")
	}
	ctx, cancel := context.WithTimeout(ctx, updateTimeout)
	defer cancel()
	zone, err := t.findZone(ctx, u.logger)
	if err != nil {
		return err
	}
	former := u.record.doubt()
	u.forgetSet(ctx)
	records := []libdns.Record{libdns.Address{Name: libdns.RelativeName(t.name+".", zone), TTL: t.ttl, IP: address}}
	if _, err := t.provider.SetRecords(ctx, zone, records); err != nil {
		return errors.New(t.hide.Replace(err.Error()))
	}
	u.record.mu.Lock()
	u.record.updated++
	u.record.mu.Unlock()
	now := time.Now()
	u.record.set(u, address, now)
	u.storeSet(ctx, address, now)
	u.changes.add()
	fields := []zap.Field{zap.Stringer("address", address)}
	if former.IsValid() && former != address {
		fields = append(fields, zap.Stringer("former", former))
	}
	u.logger.Info("set the record", fields...)
	return nil
}
