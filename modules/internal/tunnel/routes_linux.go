package tunnel

import (
	"context"
	"errors"
	"syscall"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// routesSettle is how long what changes together takes: an address comes, its
// route follows and another one goes.
const routesSettle = 50 * time.Millisecond

// watchRoutes calls changed when this host's addresses or routes change, until
// ctx is done. The keeper's own look each second misses what lasts less.
func watchRoutes(ctx context.Context, changed func()) {
	var groups uint32
	for _, group := range []int{unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV6_IFADDR, unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV6_ROUTE} {
		groups |= 1 << (group - 1)
	}
	conn, err := netlink.Dial(unix.NETLINK_ROUTE, &netlink.Config{Groups: groups})
	if err != nil {
		return // a sandbox without it: each second will do
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	for {
		// More changes than the socket holds is ENOBUFS.
		if _, err := conn.Receive(); ctx.Err() != nil || err != nil && !errors.Is(err, syscall.ENOBUFS) {
			return
		}
		select {
		case <-time.After(routesSettle):
			changed()
		case <-ctx.Done():
			return
		}
	}
}
