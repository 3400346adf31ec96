package kernelns

import (
	"fmt"
	"os"
	"sync"
	"syscall"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// netlinkConn speaks route netlink with a namespace, over a socket that was
// made inside. The kernel lets us: to the user who made a user namespace it
// belongs with everything inside (user_namespaces(7)).
type netlinkConn struct {
	conn *netlink.Conn
	mu   sync.Mutex
}

// newNetlinkConn takes over fd.
func newNetlinkConn(fd int) (*netlinkConn, error) {
	f := os.NewFile(uintptr(fd), "netlink")
	raw, err := f.SyscallConn()
	if err != nil {
		f.Close()
		return nil, err
	}
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		f.Close()
		return nil, fmt.Errorf("binding a netlink socket: %w", err)
	}
	address, err := unix.Getsockname(fd)
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("binding a netlink socket: %w", err)
	}
	// Reasons in words instead of bare numbers, from Linux 4.12 on.
	_ = unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_EXT_ACK, 1)
	port := address.(*unix.SockaddrNetlink).Pid
	return &netlinkConn{conn: netlink.NewConn(&netlinkSocket{f, raw}, port)}, nil
}

// change sends one request and waits for the kernel's word on it.
func (c *netlinkConn) change(kind netlink.HeaderType, flags netlink.HeaderFlags, fixed []byte, attributes func(*netlink.AttributeEncoder)) error {
	encoder := netlink.NewAttributeEncoder()
	attributes(encoder)
	encoded, err := encoder.Encode()
	if err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	_, err = c.conn.Execute(netlink.Message{
		Header: netlink.Header{Type: kind, Flags: netlink.Request | netlink.Acknowledge | flags},
		Data:   append(fixed, encoded...),
	})
	return err
}

func (c *netlinkConn) Close() error { return c.conn.Close() }

// netlinkSocket is a netlink.Socket over a descriptor that exists already,
// which the library has no other way to take.
type netlinkSocket struct {
	file *os.File
	raw  syscall.RawConn
}

func (s *netlinkSocket) Close() error { return s.file.Close() }

func (s *netlinkSocket) Send(m netlink.Message) error { return s.SendMessages([]netlink.Message{m}) }

func (s *netlinkSocket) SendMessages(messages []netlink.Message) error {
	var all []byte
	for _, m := range messages {
		b, err := m.MarshalBinary()
		if err != nil {
			return err
		}
		all = append(all, b...)
	}
	var sendErr error
	if err := s.raw.Write(func(fd uintptr) bool {
		sendErr = unix.Sendto(int(fd), all, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK})
		return sendErr != unix.EAGAIN
	}); err != nil {
		return err
	}
	return os.NewSyscallError("sendto", sendErr)
}

func (s *netlinkSocket) Receive() ([]netlink.Message, error) {
	// Acknowledgements are all that is asked for here. They carry the request
	// back, which is small.
	buf := make([]byte, 16<<10)
	var n int
	var receiveErr error
	if err := s.raw.Read(func(fd uintptr) bool {
		n, _, receiveErr = unix.Recvfrom(int(fd), buf, 0)
		return receiveErr != unix.EAGAIN
	}); err != nil {
		return nil, err
	}
	if receiveErr != nil {
		return nil, os.NewSyscallError("recvfrom", receiveErr)
	}
	raw, err := syscall.ParseNetlinkMessage(buf[:n])
	if err != nil {
		return nil, err
	}
	messages := make([]netlink.Message, 0, len(raw))
	for _, m := range raw {
		messages = append(messages, netlink.Message{
			Header: netlink.Header{
				Length:   m.Header.Len,
				Type:     netlink.HeaderType(m.Header.Type),
				Flags:    netlink.HeaderFlags(m.Header.Flags),
				Sequence: m.Header.Seq,
				PID:      m.Header.Pid,
			},
			Data: m.Data,
		})
	}
	return messages, nil
}
