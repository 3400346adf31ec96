package wireguard

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	caddycmd "github.com/caddyserver/caddy/v2/cmd"
	"github.com/spf13/cobra"

	"github.com/homeward-relay/homeward/modules/internal/tunnel"
)

func init() {
	caddycmd.RegisterCommand(caddycmd.Command{
		Name:  "wireguard",
		Short: "Sets up relays and homes, makes WireGuard keys and shows tunnels",
		Long: `
Sets up a relay and its home, and adds to them later; makes the keys that a
tunnel needs, without any WireGuard tools installed; turns configuration files
of other WireGuards into Caddyfiles; shows the tunnels of the running Caddy; and
demonstrates on this machine alone what a relay does.`,
		CobraFunc: func(root *cobra.Command) {
			root.AddCommand(setupCommand(), addCommand(), genkeyCommand(), genpskCommand(), pubkeyCommand(), showCommand(), importCommand(), demoCommand())
		},
	})
}

func genkeyCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "genkey",
		Short: "Prints a new private key",
		Long: `
Prints a new private key in base64. Keep it in a file that nobody but Caddy's
user can read; as root:

	(umask 077; caddy wireguard genkey > /etc/caddy/wg0.key)
	chown caddy /etc/caddy/wg0.key`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			_, err := fmt.Fprintln(cmd.OutOrStdout(), tunnel.NewPrivateKey().Base64())
			return err
		},
	}
}

func genpskCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "genpsk",
		Short: "Prints a new preshared key",
		Long: `
Prints a new preshared key in base64. Both ends of a tunnel have the same one.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			_, err := fmt.Fprintln(cmd.OutOrStdout(), tunnel.NewPresharedKey().Base64())
			return err
		},
	}
}

func pubkeyCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "pubkey [<file>]",
		Short: "Prints the public key of a private key",
		Long: `
Prints the public key that belongs to a private key, which is read from the
file or else from the standard input:

	caddy wireguard pubkey /etc/caddy/wg0.key`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			in := cmd.InOrStdin()
			if len(args) == 1 {
				file, err := os.Open(args[0])
				if err != nil {
					return fmt.Errorf("reading the private key: %w", err)
				}
				defer file.Close()
				in = file
			}
			key, err := readPrivateKey(in)
			if err != nil {
				return err
			}
			_, err = fmt.Fprintln(cmd.OutOrStdout(), key.Public())
			return err
		},
	}
}

func readPrivateKey(in io.Reader) (tunnel.PrivateKey, error) {
	line, err := bufio.NewReader(io.LimitReader(in, maxSecretFile)).ReadString('\n')
	if err != nil && !errors.Is(err, io.EOF) {
		return tunnel.PrivateKey{}, fmt.Errorf("reading the private key: %w", err)
	}
	key, err := tunnel.ParsePrivateKey(strings.TrimSpace(line))
	if err != nil {
		return tunnel.PrivateKey{}, fmt.Errorf("reading the private key: %w", err)
	}
	return key, nil
}
