package services

import (
	"context"
	"time"

	"github.com/homeward-relay/homeward/tests/testnet"
)

// reachable says whether a TCP server answers on an address.
func reachable(namespace *testnet.Namespace, address string) error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	conn, err := namespace.Dial(ctx, "tcp", address)
	if err != nil {
		return err
	}
	return conn.Close()
}
