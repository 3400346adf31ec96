// Command stocknetstack is the relay that one gets by joining wireguard-go's
// own netstack to a loop of io.Copy, as several programs do: the figure that
// Homeward's throughput is printed beside. It is a measuring rod, not a relay
// to use.
//
//	stocknetstack -uapi FILE -address 10.77.0.1 -mtu 1420 -forward :5201=10.77.0.2:5201
//
// FILE has the tunnel's keys, port and peers in the language of wireguard-go's
// UAPI (https://www.wireguard.com/xplatform/).
package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"log"
	"net"
	"net/netip"
	"os"
	"strings"
	"time"

	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/tun/netstack"
)

func main() {
	uapi := flag.String("uapi", "", "file with the device's configuration")
	address := flag.String("address", "10.77.0.1", "the relay's address in the tunnel")
	mtu := flag.Int("mtu", 1420, "largest inner packet, in bytes")
	var forwards []string
	flag.Func("forward", "listen address = address in the tunnel; repeatable", func(value string) error {
		if !strings.Contains(value, "=") {
			return fmt.Errorf("%q has no =", value)
		}
		forwards = append(forwards, value)
		return nil
	})
	flag.Parse()

	config, err := os.ReadFile(*uapi)
	if err != nil {
		log.Fatal(err)
	}
	ip, err := netip.ParseAddr(*address)
	if err != nil {
		log.Fatal(err)
	}
	tun, stack, err := netstack.CreateNetTUN([]netip.Addr{ip}, nil, *mtu)
	if err != nil {
		log.Fatal(err)
	}
	dev := device.NewDevice(tun, conn.NewDefaultBind(), device.NewLogger(device.LogLevelError, ""))
	if err := dev.IpcSet(string(config)); err != nil {
		log.Fatal(err)
	}
	if err := dev.Up(); err != nil {
		log.Fatal(err)
	}
	for _, forward := range forwards {
		listen, upstream, _ := strings.Cut(forward, "=")
		listener, err := net.Listen("tcp", listen)
		if err != nil {
			log.Fatal(err)
		}
		go serve(listener, stack, upstream)
	}
	fmt.Println("serving")
	<-dev.Wait()
}

func serve(listener net.Listener, stack *netstack.Net, upstream string) {
	for {
		client, err := listener.Accept()
		if err != nil {
			log.Fatal(err)
		}
		go relay(client, stack, upstream)
	}
}

func relay(client net.Conn, stack *netstack.Net, upstream string) {
	defer client.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	home, err := stack.DialContext(ctx, "tcp", upstream)
	if err != nil {
		log.Print(err)
		return
	}
	defer home.Close()
	up := make(chan struct{})
	go func() {
		defer close(up)
		io.Copy(home, client)
		closeWrite(home)
	}()
	io.Copy(client, home)
	closeWrite(client)
	<-up
}

func closeWrite(conn net.Conn) {
	if half, ok := conn.(interface{ CloseWrite() error }); ok {
		half.CloseWrite()
	}
}
