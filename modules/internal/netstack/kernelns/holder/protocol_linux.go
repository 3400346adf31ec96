// Package holder is the small process that lives in a tunnel's network
// namespace and hands out blank sockets of it.
//
// A socket belongs for good to the namespace it was made in, whoever uses it
// later. So one process has to be inside, and all that it does is make sockets
// and pass them out; options, addresses and connections are up to who asked.
//
// The process is this program itself, run again: the package's init function
// sees by the arguments that it is meant and never returns to main. It must be
// imported by whatever calls Command. Two roles come after each other:
//
//   - setup starts inside the new namespaces with every capability there. It
//     hands out the few sockets that need one (netlink, raw, the TUN), then
//     starts two servers that have none, and ends.
//   - serve has no capability, and a system-call filter. It hands out TCP and
//     UDP sockets, and starts a successor for the other server if that is
//     gone: nothing can enter the namespace from outside again.
//
// Each ends when the other side of its control socket is closed, which the
// kernel sees to however that process ends, and not by a signal that asks it to.
package holder

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Op is what a holder is asked for.
type Op uint32

const (
	// OpSocket asks for Count blank sockets of Domain, Type and Protocol.
	OpSocket Op = iota + 1

	// OpTUN asks setup for an open /dev/net/tun.
	OpTUN

	// OpServe asks for a control socket of a new server; setup ends when it
	// has started two.
	OpServe
)

// MaxSockets is the most that one request can ask for. The kernel passes up to
// 253 descriptors in a message.
const MaxSockets = 64

// Request is one question to a holder.
type Request struct {
	Op       Op
	Domain   int32
	Type     int32
	Protocol int32
	Count    uint32

	// Number comes back with the answer, so that one that nobody waits for any
	// more is known.
	Number uint32
}

// Reply is the answer to a Request, or a server's first words. Descriptors go
// beside it.
type Reply struct {
	// Errno is why there are no descriptors, or 0. In a server's first words
	// it is why the server is not confined.
	Errno syscall.Errno

	// PID is the process that answers.
	PID int32

	// Number is the request's, or 0 with a server's first words.
	Number uint32

	// Confined is whether it runs under a system-call filter.
	Confined bool

	// part says that the descriptors are beside this message, and the answer
	// comes with the next: when the holder has closed its own copies of them.
	// Until then a socket that is closed here would stay open.
	part bool
}

const (
	requestSize = 24
	replySize   = 16

	flagConfined = 1 << 0
	flagPart     = 1 << 1
)

func (r Request) appendTo(b []byte) []byte {
	for _, field := range [...]uint32{uint32(r.Op), uint32(r.Domain), uint32(r.Type), uint32(r.Protocol), r.Count, r.Number} {
		b = binary.LittleEndian.AppendUint32(b, field)
	}
	return b
}

func (r *Request) unmarshal(b []byte) error {
	if len(b) != requestSize {
		return fmt.Errorf("a request of %d bytes", len(b))
	}
	field := func(i int) uint32 { return binary.LittleEndian.Uint32(b[4*i:]) }
	*r = Request{Op(field(0)), int32(field(1)), int32(field(2)), int32(field(3)), field(4), field(5)}
	return nil
}

func (r Reply) appendTo(b []byte) []byte {
	b = binary.LittleEndian.AppendUint32(b, uint32(r.Errno))
	b = binary.LittleEndian.AppendUint32(b, uint32(r.PID))
	b = binary.LittleEndian.AppendUint32(b, r.Number)
	flags := uint32(0)
	if r.Confined {
		flags |= flagConfined
	}
	if r.part {
		flags |= flagPart
	}
	return binary.LittleEndian.AppendUint32(b, flags)
}

func (r *Reply) unmarshal(b []byte) error {
	if len(b) != replySize {
		return fmt.Errorf("a reply of %d bytes", len(b))
	}
	flags := binary.LittleEndian.Uint32(b[12:])
	*r = Reply{
		Errno:    syscall.Errno(binary.LittleEndian.Uint32(b[0:])),
		PID:      int32(binary.LittleEndian.Uint32(b[4:])),
		Number:   binary.LittleEndian.Uint32(b[8:]),
		Confined: flags&flagConfined != 0,
		part:     flags&flagPart != 0,
	}
	return nil
}

// Ask sends a request to a holder. Its answer is what Receive returns next.
func Ask(control *net.UnixConn, request Request) error {
	_, err := control.Write(request.appendTo(make([]byte, 0, requestSize)))
	return err
}

// Receive waits for what a holder says, and the descriptors with it, which
// belong to the caller alone.
func Receive(control *net.UnixConn) (Reply, []int, error) {
	reply, fds, err := receive(control)
	if err != nil || !reply.part {
		return reply, fds, err
	}
	reply, more, err := receive(control)
	CloseAll(more)
	if err != nil {
		CloseAll(fds)
		return Reply{}, nil, err
	}
	return reply, fds, nil
}

func receive(control *net.UnixConn) (Reply, []int, error) {
	data := make([]byte, replySize+1)
	oob := make([]byte, unix.CmsgSpace(4*MaxSockets))
	n, oobn, _, _, err := control.ReadMsgUnix(data, oob)
	if err != nil {
		return Reply{}, nil, err
	}
	if n == 0 {
		return Reply{}, nil, net.ErrClosed
	}
	fds, err := descriptors(oob[:oobn])
	if err != nil {
		return Reply{}, nil, err
	}
	var reply Reply
	if err := reply.unmarshal(data[:n]); err != nil {
		CloseAll(fds)
		return Reply{}, nil, err
	}
	return reply, fds, nil
}

// rights is a control message that passes descriptors, as unix.UnixRights makes
// it, in memory of its own.
type rights struct {
	header unix.Cmsghdr
	fds    [MaxSockets]int32
}

// of is the message for descriptors, which the next call overwrites.
func (r *rights) of(fds []int) []byte {
	r.header.Level, r.header.Type = unix.SOL_SOCKET, unix.SCM_RIGHTS
	r.header.SetLen(unix.CmsgLen(4 * len(fds)))
	for i, fd := range fds {
		r.fds[i] = int32(fd)
	}
	return unsafe.Slice((*byte)(unsafe.Pointer(r)), unix.CmsgSpace(4*len(fds)))
}

func descriptors(oob []byte) ([]int, error) {
	if len(oob) == 0 {
		return nil, nil
	}
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, err
	}
	var all []int
	var errs []error
	for i := range messages {
		fds, err := unix.ParseUnixRights(&messages[i])
		all = append(all, fds...)
		errs = append(errs, err)
	}
	if err := errors.Join(errs...); err != nil {
		CloseAll(all)
		return nil, err
	}
	return all, nil
}

// CloseAll closes descriptors, such as those of an answer.
func CloseAll(fds []int) {
	for _, fd := range fds {
		_ = unix.Close(fd)
	}
}
