package kernelns

import (
	"net"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/homeward-relay/homeward/modules/internal/netstack/kernelns/holder"
)

// answerTimeout is how long a holder may take to answer: it only makes system
// calls that do not wait. One that is stopped or wedged counts as dead after
// that.
const answerTimeout = 5 * time.Second

// server is a holder that hands out sockets.
type server struct {
	control  *net.UnixConn
	pid      int
	confined bool

	asking  sync.Mutex // one question at a time
	answers chan answer
	ended   chan struct{} // closed when it is gone, or given up
}

type answer struct {
	reply holder.Reply
	fds   []int
}

// newServer takes over a new holder's control socket and waits for its first
// words.
func newServer(fd int) (*server, error) {
	control, err := holder.Control(fd)
	if err != nil {
		return nil, err
	}
	s := &server{control: control, answers: make(chan answer, 1), ended: make(chan struct{})}
	go s.receive()
	select {
	case hello := <-s.answers:
		holder.CloseAll(hello.fds)
		s.pid, s.confined = int(hello.reply.PID), hello.reply.Confined
		return s, nil
	case <-s.ended:
	case <-time.After(answerTimeout):
	}
	s.end()
	return nil, syscall.ECHILD
}

// receive takes what the holder says until it is gone.
func (s *server) receive() {
	defer close(s.ended)
	for {
		reply, fds, err := holder.Receive(s.control)
		if err != nil {
			return
		}
		select {
		case s.answers <- answer{reply, fds}:
		default:
			// Two answers to one question: it is not what it should be.
			holder.CloseAll(fds)
			return
		}
	}
}

// ask returns the descriptors that the holder answers with, of which there are
// at least as many as wanted.
func (s *server) ask(request holder.Request, wanted int) ([]int, error) {
	s.asking.Lock()
	defer s.asking.Unlock()
	if err := holder.Ask(s.control, request); err != nil {
		// It is gone, which its end will say in a moment.
		s.control.Close()
		<-s.ended
		return nil, errLost
	}
	late := time.NewTimer(answerTimeout)
	defer late.Stop()
	select {
	case got := <-s.answers:
		return got.taken(wanted)
	case <-s.ended:
	case <-late.C:
		// Its answer must not be taken for that to the next question.
		s.control.Close()
		<-s.ended
	}
	return nil, errLost
}

// isDead says whether the holder is gone, or given up.
func (s *server) isDead() bool {
	select {
	case <-s.ended:
		return true
	default:
		return false
	}
}

// taken is the descriptors of an answer, or why there are none.
func (a answer) taken(wanted int) ([]int, error) {
	switch {
	case a.reply.Errno != 0:
		holder.CloseAll(a.fds)
		return nil, a.reply.Errno
	case len(a.fds) < wanted:
		holder.CloseAll(a.fds)
		// The kernel leaves out those that this process has no room for.
		return nil, syscall.EMFILE
	}
	return a.fds, nil
}

// hangUp tells the holder to end.
func (s *server) hangUp() {
	if raw, err := s.control.SyscallConn(); err == nil {
		_ = raw.Control(func(fd uintptr) { _ = unix.Shutdown(int(fd), unix.SHUT_WR) })
	}
	// One that is stopped is not waited for.
	_ = s.control.SetReadDeadline(time.Now().Add(answerTimeout))
}

// end ends the holder, waits until it has closed its side, and takes it from
// the list of processes if it is a child of this one, as it is where this
// process is a container's first.
func (s *server) end() {
	s.hangUp()
	<-s.ended
	s.control.Close()
	select {
	case left := <-s.answers:
		holder.CloseAll(left.fds)
	default:
	}
	s.reap()
}

// reap waits for the process if it is a child of this one. Its control socket
// is closed by its end, so that it cannot take long.
func (s *server) reap() {
	if s.pid <= 0 {
		return
	}
	for range 100 {
		pid, err := syscall.Wait4(s.pid, nil, syscall.WNOHANG, nil)
		if pid != 0 && err != syscall.EINTR {
			return
		}
		time.Sleep(time.Millisecond)
	}
}

// askOnce is server.ask for the first holder, which says no first words.
func askOnce(control *net.UnixConn, request holder.Request) ([]int, error) {
	if err := control.SetDeadline(time.Now().Add(answerTimeout)); err != nil {
		return nil, err
	}
	if err := holder.Ask(control, request); err != nil {
		return nil, err
	}
	reply, fds, err := holder.Receive(control)
	if err != nil {
		return nil, err
	}
	return answer{reply, fds}.taken(1)
}
