package wireguard

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"strings"
)

// maxQuestionTries is how often a question is repeated after an answer that cannot be.
const maxQuestionTries = 5

// questions asks a person.
type questions struct {
	in     *bufio.Reader
	out    io.Writer
	secret func() (string, error) // reads a line without showing it

	// outgoing returns this machine's addresses towards the internet.
	outgoing func() []netip.Addr
}

func newQuestions(in io.Reader, out io.Writer, secret func() (string, error)) *questions {
	return &questions{bufio.NewReader(in), out, secret, outgoingAddresses}
}

// ask asks until the answer is one that check takes. An empty answer is preset.
func (q *questions) ask(question, preset string, check func(answer string) error) (string, error) {
	if preset != "" {
		question += " [" + preset + "]"
	}
	return q.until(question, func() (string, error) {
		line, err := q.in.ReadString('\n')
		if err != nil && (line == "" || !errors.Is(err, io.EOF)) {
			return "", err
		}
		if line = strings.TrimSpace(line); line == "" {
			line = preset
		}
		return line, nil
	}, check)
}

// askSecret is ask for what must not be seen.
func (q *questions) askSecret(question string, check func(answer string) error) (string, error) {
	return q.until(question+" (not shown)", func() (string, error) {
		line, err := q.secret()
		fmt.Fprintln(q.out)
		return strings.TrimSpace(line), err
	}, check)
}

func (q *questions) until(question string, read func() (string, error), check func(answer string) error) (string, error) {
	for range maxQuestionTries {
		if _, err := fmt.Fprint(q.out, question, ": "); err != nil {
			return "", err
		}
		answer, err := read()
		if err != nil {
			return "", fmt.Errorf("reading an answer: %w", err)
		}
		if err := check(answer); err != nil {
			fmt.Fprintf(q.out, "  %v\n", err)
			continue
		}
		return answer, nil
	}
	return "", errors.New("none of the answers could be taken; nothing has been written")
}

// ask asks for what has not been given.
func (s *setup) ask(q *questions, given func(flag string) bool) error {
	if !given("domain") || !given("relay") {
		if err := s.askAll(q, given); err != nil {
			return err
		}
	}
	if s.token == "" && (s.certificatesNeedToken() || s.keepsRecords()) {
		token, err := q.askSecret("DuckDNS's token", checkToken)
		if err != nil {
			return err
		}
		s.token = token
	}
	return nil
}

func (s *setup) askAll(q *questions, given func(flag string) bool) error {
	each := func(answer string, check func(word string) error) error {
		for _, word := range words(answer) {
			if err := check(word); err != nil {
				return err
			}
		}
		return nil
	}
	var services []service
	for _, question := range []struct {
		flag, text, preset string
		check              func(answer string) error
		take               func(answer string)
	}{
		{"domain", "Names of the web site at home, such as example.duckdns.org sub.example.duckdns.org (none: just Enter)", "",
			func(answer string) error { return each(answer, checkDomain) },
			func(answer string) {
				if s.domains = words(answer); len(s.domains) == 0 && !given("web") {
					s.web = webNone
				}
			}},
		{"web", "The web server at home: https, https:<port>, http:<port>, passthrough (TLS ends at home) or none", s.web,
			func(answer string) error {
				scheme, _, err := parseWeb(answer)
				if err == nil && scheme != webNone && len(s.domains) == 0 {
					err = errors.New("without a name there is no web site; write none")
				}
				return err
			},
			func(answer string) { s.web = answer }},
		{"fritzbox", "If home's WireGuard is a FRITZ!Box, its own address, such as 192.168.178.1/24 (else just Enter)", "",
			func(answer string) error {
				if answer == "" {
					return nil
				}
				if _, err := parseFritzBox(answer); err != nil {
					return err
				}
				return checkBoxEndpoint(answer, s.relay)
			},
			func(answer string) { s.fritzBox = answer }},
		{"server", "The address of the machine behind it that has the services, such as 192.168.178.20", "",
			func(answer string) error {
				box, err := parseFritzBox(s.fritzBox)
				if err != nil {
					return err
				}
				_, err = parseServer(answer, box)
				return err
			},
			func(answer string) { s.server = answer }},
		{"relay", "Where home calls the VM: " + whereHomeCalls, "",
			func(answer string) error {
				if err := checkRelay(answer, s.domains); err != nil {
					return err
				}
				return checkBoxEndpoint(s.fritzBox, answer)
			},
			func(answer string) { s.relay = answer }},
		{"transparent", "Shall programs at home see the clients' own addresses? They cannot on other machines than the one with the WireGuard, nor behind this binary as it is set up here (yes or no)", "no",
			func(answer string) error {
				if answer != "yes" && answer != "no" {
					return errors.New("write yes or no")
				}
				return nil
			},
			func(answer string) { s.transparent = answer == "yes" }},
		{"service", "Other ports for home, such as 2022:22 6514 19132/udp (none: just Enter)", "",
			func(answer string) error {
				services = nil
				if err := each(answer, func(word string) error {
					service, err := parseService(word)
					services = append(services, service)
					return err
				}); err != nil {
					return err
				}
				return checkServices(services, nil, s.transparent)
			},
			func(answer string) { s.services = words(answer) }},
	} {
		if given(question.flag) ||
			question.flag == "server" && s.fritzBox == "" ||
			question.flag == "transparent" && s.fritzBox != "" ||
			question.flag == "web" && s.web == webNone {
			continue
		}
		answer, err := q.ask(question.text, question.preset, question.check)
		if err != nil {
			return err
		}
		question.take(answer)
	}
	if given("vm-address") || !s.hasRecords() {
		return nil
	}
	answer, err := q.ask("The VM's public addresses, for the records at DuckDNS, which it then keeps right (none: you do)", s.presetVMAddresses(q.outgoing),
		func(answer string) error {
			_, _, err := parseVMAddresses(words(answer))
			return err
		})
	s.vmAddresses = words(answer)
	return err
}

// words parts an answer at blanks and commas.
func words(answer string) []string {
	return strings.FieldsFunc(answer, func(r rune) bool { return r == ' ' || r == ',' || r == '\t' })
}
