package wireguard

import "syscall"

// demoProcessAttributes keep Ctrl-C in the terminal from reaching the demo's
// processes twice, and end them with the demo even if it is killed.
func demoProcessAttributes() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
}
