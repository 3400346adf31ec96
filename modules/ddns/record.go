package ddns

import (
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"
)

// record is what is known of a record, in this process. It outlives configurations, so
// that a reload does not set what is right.
type record struct {
	mu              sync.Mutex
	published       netip.Addr // invalid: not known
	former          netip.Addr // what was published, if that is not known any more
	doubtful        bool       // it may be another, so DNS is not to be believed either
	at              time.Time  // when it was last set
	updated, failed uint64

	// owners are the updaters of configurations that are in force, or are not yet out
	// of it. The last one has a say.
	owners []*updater

	// setting has room for who sets a record of the name: one at a time.
	setting chan struct{}
}

func newRecord(setting chan struct{}) *record { return &record{setting: setting} }

// begin lets an updater take the record over.
func (r *record) begin(u *updater) {
	r.mu.Lock()
	defer r.mu.Unlock()
	former := r.owner()
	r.owners = append(r.owners, u)
	r.handOver(former)
}

// end takes an updater's say away. If nobody looks after the record any more, what is
// known of it gets old.
func (r *record) end(u *updater) {
	r.mu.Lock()
	defer r.mu.Unlock()
	former := r.owner()
	r.owners = slices.DeleteFunc(r.owners, func(other *updater) bool { return other == u })
	if len(r.owners) == 0 {
		r.published, r.former, r.doubtful, r.at = netip.Addr{}, netip.Addr{}, false, time.Time{}
		return
	}
	r.handOver(former)
}

// owner is who has the say, or nil. r.mu is held.
func (r *record) owner() *updater {
	if len(r.owners) == 0 {
		return nil
	}
	return r.owners[len(r.owners)-1]
}

// handOver lets an owner with other settings than the former one's set the record anew.
// r.mu is held.
func (r *record) handOver(former *updater) {
	if former != nil && former.settings != r.owner().settings {
		r.published, r.former, r.doubtful = netip.Addr{}, netip.Addr{}, true
	}
}

// isOf tells whether an updater has the say.
func (r *record) isOf(u *updater) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.owner() == u
}

// doubt is for what may be set from now on, or not.
func (r *record) doubt() (former netip.Addr) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.published.IsValid() {
		r.former = r.published
	}
	r.published, r.doubtful = netip.Addr{}, true
	return r.former
}

// set is for what an updater has set, or found to be so. It is of no account if it has
// done so with other settings than those that are in force.
func (r *record) set(u *updater, address netip.Addr, at time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if owner := r.owner(); owner != nil && owner.settings == u.settings {
		r.published, r.former, r.doubtful, r.at = address, netip.Addr{}, false, at
	}
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
		setting := make(chan struct{}, 1)
		records[name] = make(map[string]*record)
		for _, f := range families {
			records[name][f.record] = newRecord(setting)
		}
	}
	return records[name][family.record]
}
