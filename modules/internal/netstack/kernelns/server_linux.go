package kernelns

import (
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"syscall"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"github.com/homeward-relay/homeward/modules/internal/netstack/kernelns/holder"
)

// answerTimeout is how long a holder may take to answer: it only makes system
// calls that do not wait. One that takes longer is stopped, or waits for a host
// that swaps, and so probably is the other. Who asks is told so; the holders are
// kept, since with the last of them every connection would go.
const answerTimeout = 5 * time.Second

// errLate means that a holder has not answered in time.
var errLate = errors.New("a process that holds the network namespace has not answered in time")

// server is a holder that hands out sockets.
type server struct {
	control *net.UnixConn
	logger  *zap.Logger
	pid     int

	// unconfined is why it runs under no system-call filter; nil if it does.
	unconfined error

	// turn has one element while there is a question without an answer, or the
	// first words are awaited.
	turn  chan struct{}
	ended chan struct{} // closed when it is gone

	mu sync.Mutex

	// number is the last question's.
	number uint32

	// waiting is where who asked waits for the answer; nil if nobody does.
	waiting chan answer

	// late is whether the answer has taken too long.
	late bool
}

type answer struct {
	reply holder.Reply
	fds   []int
}

// newServer takes over a new holder's control socket and waits for its first
// words.
func newServer(fd int, logger *zap.Logger) (*server, error) {
	control, err := holder.Control(fd)
	if err != nil {
		return nil, err
	}
	s := &server{control: control, logger: logger, turn: make(chan struct{}, 1), ended: make(chan struct{})}
	s.turn <- struct{}{}
	waiting := make(chan answer, 1)
	s.waiting = waiting
	go s.receive()
	late := time.NewTimer(answerTimeout)
	defer late.Stop()
	hello, err := s.await(waiting, late.C)
	if err != nil {
		s.end()
		if errors.Is(err, errLost) {
			err = io.ErrUnexpectedEOF
		}
		return nil, fmt.Errorf("waiting for its first words: %w", err)
	}
	holder.CloseAll(hello.fds)
	s.pid = int(hello.reply.PID)
	if !hello.reply.Confined {
		s.unconfined = holder.ExplainUnconfined(hello.reply.Errno)
	}
	return s, nil
}

// receive takes what the holder says until it is gone.
func (s *server) receive() {
	defer close(s.ended)
	for {
		reply, fds, err := holder.Receive(s.control)
		if err != nil {
			return
		}
		if !s.deliver(answer{reply, fds}) {
			// Not what it should be.
			holder.CloseAll(fds)
			return
		}
	}
}

// deliver hands an answer to who waits for it, and says whether there was such
// a question.
func (s *server) deliver(a answer) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if a.reply.Number != s.number {
		return false
	}
	select {
	case <-s.turn:
	default:
		return false
	}
	if s.waiting == nil {
		holder.CloseAll(a.fds)
	} else {
		s.waiting <- a
		s.waiting = nil
	}
	if s.late {
		s.late = false
		s.logger.Info("a process that holds the tunnel's network namespace answers again", zap.Int("pid", s.pid))
	}
	return true
}

// ask returns the descriptors that the holder answers with, of which there are
// at least as many as wanted. While it owes an answer to somebody else it is
// not asked.
func (s *server) ask(request holder.Request, wanted int) ([]int, error) {
	late := time.NewTimer(answerTimeout)
	defer late.Stop()
	select {
	case s.turn <- struct{}{}:
	case <-s.ended:
		return nil, errLost
	case <-late.C:
		return nil, errLate
	}
	waiting := make(chan answer, 1)
	s.mu.Lock()
	s.number++
	s.waiting, request.Number = waiting, s.number
	s.mu.Unlock()
	if err := holder.Ask(s.control, request); err != nil {
		// It is gone, which its end will say in a moment.
		s.control.Close()
		<-s.ended
		return nil, errLost
	}
	got, err := s.await(waiting, late.C)
	if err != nil {
		return nil, err
	}
	return got.taken(wanted)
}

// await waits for the answer to the last question. When it is late, it is left
// to deliver, and the next question waits for it.
func (s *server) await(waiting <-chan answer, late <-chan time.Time) (answer, error) {
	err := errLate
	select {
	case got := <-waiting:
		return got, nil
	case <-s.ended:
		err = errLost
	case <-late:
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	select {
	case got := <-waiting: // just so
		return got, nil
	default:
	}
	s.waiting = nil
	if err == errLate && !s.late && s.number > 0 {
		s.late = true
		s.logger.Warn("a process that holds the tunnel's network namespace does not answer", zap.Int("pid", s.pid), zap.Duration("duration", answerTimeout))
	}
	return answer{}, err
}

// isLate says whether the holder owes an answer for too long.
func (s *server) isLate() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.late
}

// isDead says whether the holder is gone.
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
