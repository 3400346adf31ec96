// Package testnet builds small internets out of network namespaces and runs
// real software in them: the relay as it is deployed, a home behind
// carrier-grade NAT, and clients. Whole-system tests are written on top of it.
//
// A test usually starts so:
//
//	func TestSomething(t *testing.T) {
//		inet := testnet.NewInternet(t)             // client, relay, CGN, home
//		keys := testnet.NewTunnelKeys(t)
//		relay := testnet.NewRelay(t, inet.Relay)
//		relay.Secret(t, "wg0.key", keys.Relay.Private)
//		relay.Start(t, caddyfile)
//		home := testnet.StartHome(t, inet.Home, keys, testnet.HomeConfig{})
//		home.WaitHandshake(t)
//		…
//	}
//
// Everything that a test makes goes away with it. What an earlier run that was
// killed left behind (namespaces, the processes in them, files) is removed by
// the next one, which knows it by a lock that nobody holds any more.
//
// Clients and services written in Go run inside the test process: their
// sockets are made in a namespace (Namespace.Dial, Listen, ListenPacket) and
// stay in it.
package testnet
