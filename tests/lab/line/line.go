package line

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// End is one end of a line: a TUN device in a namespace.
type End struct {
	// Name of the device.
	Name string

	// Enter runs a function in the end's network namespace, on one thread.
	Enter func(func() error) error
}

// Config is a line between two ends.
type Config struct {
	A, B End

	// AtoB and BtoA are what the two directions do.
	AtoB, BtoA Impairment

	// Seed makes the random decisions repeatable.
	Seed uint64
}

// deviceMTU is the TUN devices' own MTU: that of Ethernet, which a host takes
// for its first hop's.
const deviceMTU = 1500

// Line is a running line. It runs in a process of its own, since its threads
// are real-time ones: see emulate.
type Line struct {
	mu      sync.Mutex // one request at a time
	cmd     *exec.Cmd
	in      io.WriteCloser
	encoder *json.Encoder
	decoder *json.Decoder
}

// New makes the two devices, up but without addresses, and starts the line.
func New(config Config) (*Line, error) {
	if err := errors.Join(config.AtoB.Check(), config.BtoA.Check()); err != nil {
		return nil, err
	}
	a, err := openTUN(config.A)
	if err != nil {
		return nil, err
	}
	defer a.Close()
	b, err := openTUN(config.B)
	if err != nil {
		return nil, err
	}
	defer b.Close()

	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), emulatorEnv+"=1")
	cmd.Stderr = os.Stderr
	cmd.ExtraFiles = []*os.File{a, b}
	// Ctrl-C is for the tests, which then end the line.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	in, inErr := cmd.StdinPipe()
	out, outErr := cmd.StdoutPipe()
	if err := errors.Join(inErr, outErr); err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("starting the line: %w", err)
	}
	l := &Line{cmd: cmd, in: in, encoder: json.NewEncoder(in), decoder: json.NewDecoder(out)}
	if err := l.Restart(config.AtoB, config.BtoA, config.Seed); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return l, nil
}

// Change puts other impairments in force from now on.
func (l *Line) Change(aToB, bToA Impairment) error {
	if err := errors.Join(aToB.Check(), bToA.Check()); err != nil {
		return err
	}
	_, err := l.ask(request{AToB: &aToB, BToA: &bToA})
	return err
}

// Restart puts impairments in force with random decisions and counters that
// begin anew from a seed. What is on the way arrives.
func (l *Line) Restart(aToB, bToA Impairment, seed uint64) error {
	if err := errors.Join(aToB.Check(), bToA.Check()); err != nil {
		return err
	}
	_, err := l.ask(request{AToB: &aToB, BToA: &bToA, Restart: true, Seed: seed})
	return err
}

// Counters are what each direction has counted since the last restart.
func (l *Line) Counters() (aToB, bToA Counters, err error) {
	answer, err := l.ask(request{})
	return answer.AToB, answer.BToA, err
}

func (l *Line) ask(request request) (answer answer, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := l.encoder.Encode(request); err != nil {
		return answer, fmt.Errorf("the line has ended: %w", err)
	}
	if err := l.decoder.Decode(&answer); err != nil {
		return answer, fmt.Errorf("the line has ended: %w", err)
	}
	return answer, nil
}

// Close ends the line, with which its devices go.
func (l *Line) Close() error {
	return errors.Join(l.in.Close(), l.cmd.Wait())
}

func openTUN(end End) (device *os.File, err error) {
	err = end.Enter(func() error {
		fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
		if err != nil {
			return err
		}
		request, err := unix.NewIfreq(end.Name)
		if err == nil {
			request.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
			err = unix.IoctlIfreq(fd, unix.TUNSETIFF, request)
		}
		if err == nil {
			err = setUp(end.Name)
		}
		if err != nil {
			return errors.Join(err, unix.Close(fd))
		}
		device = os.NewFile(uintptr(fd), end.Name)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("making TUN device %s: %w", end.Name, err)
	}
	return device, nil
}

// setUp brings a device of this thread's namespace up. Its queue is long: what
// is dropped is for the emulator to decide.
func setUp(name string) error {
	socket, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(socket)
	request, err := unix.NewIfreq(name)
	if err != nil {
		return err
	}
	request.SetUint32(10000)
	if err := unix.IoctlIfreq(socket, unix.SIOCSIFTXQLEN, request); err != nil {
		return err
	}
	request.SetUint32(deviceMTU)
	if err := unix.IoctlIfreq(socket, unix.SIOCSIFMTU, request); err != nil {
		return err
	}
	request.SetUint16(unix.IFF_UP)
	return unix.IoctlIfreq(socket, unix.SIOCSIFFLAGS, request)
}
