package ddns

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"net/netip"
	"path"
	"time"

	"github.com/caddyserver/certmagic"
	"go.uber.org/zap"
)

// storageTimeout bounds a change of what is stored.
const storageTimeout = 5 * time.Second

// lastSet is what a record was last set to, in Caddy's storage: DNS tells what the record
// is, but not that the provider has heard of it within a day, and the DNS server of this
// machine may have an answer of its own for the name.
type lastSet struct {
	Address netip.Addr `json:"address"`
	Set     time.Time  `json:"set"`
}

// key is where a record's lastSet is stored.
func (u *updater) key() string {
	return path.Join("ddns", certmagic.StorageKeys.Safe(u.target.name), u.family.record+".json")
}

// lastSet returns it, or the zero value if it is not known.
func (u *updater) lastSet(ctx context.Context) (last lastSet) {
	content, err := u.storage.Load(ctx, u.key())
	if err == nil {
		err = json.Unmarshal(content, &last)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		u.logger.Warn("loading what the record was last set to", zap.Error(err))
		return lastSet{}
	}
	return last
}

// storeSet stores what the record was set to, also if there is no more time for anything
// else.
func (u *updater) storeSet(ctx context.Context, address netip.Addr, set time.Time) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), storageTimeout)
	defer cancel()
	content, err := json.Marshal(lastSet{address, set})
	if err == nil {
		err = u.storage.Store(ctx, u.key(), content)
	}
	if err != nil {
		u.logger.Warn("storing what the record was set to", zap.Error(err))
	}
}

// forgetSet is for what may be set from now on, or not, and then not be heard of.
func (u *updater) forgetSet(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, storageTimeout)
	defer cancel()
	if err := u.storage.Delete(ctx, u.key()); err != nil && !errors.Is(err, fs.ErrNotExist) {
		u.logger.Warn("removing what the record was last set to", zap.Error(err))
	}
}
