package tests

import (
	"os/exec"
	"strings"
	"testing"
)

// TestFailuresOfALog looks for what run.sh prints when tests fail: their names
// and what they, and nobody else, have said.
func TestFailuresOfALog(t *testing.T) {
	for _, test := range []struct{ name, log, want string }{
		{
			"one of parallel subtests",
			`=== RUN   TestGood
    a_test.go:1: good
--- PASS: TestGood (0.00s)
=== RUN   TestAll
=== RUN   TestAll/one
=== PAUSE TestAll/one
=== RUN   TestAll/two
=== PAUSE TestAll/two
=== CONT  TestAll/one
    a_test.go:2: one begins
=== CONT  TestAll/two
    a_test.go:2: two begins
=== NAME  TestAll/one
    a_test.go:3: one is wrong:
        in two lines
=== NAME  TestAll/two
    a_test.go:4: two ends
--- FAIL: TestAll (0.00s)
    --- PASS: TestAll/two (0.02s)
    --- FAIL: TestAll/one (0.01s)
=== RUN   TestLast
    a_test.go:5: last
--- PASS: TestLast (0.00s)
FAIL
FAIL	a	1.000s
`,
			`--- FAIL: TestAll
--- FAIL: TestAll/one
    a_test.go:2: one begins
    a_test.go:3: one is wrong:
        in two lines
FAIL	a	1.000s
`,
		},
		{
			"a panic beside the test",
			`=== RUN   TestGood
    a_test.go:1: good
--- PASS: TestGood (0.00s)
PASS
ok  	a	1.000s
=== RUN   TestPanics
    b_test.go:1: panics
panic: nobody recovers

goroutine 9 [running]:
FAIL	b	1.000s
FAIL
`,
			`--- not ended: TestPanics
    b_test.go:1: panics
panic: nobody recovers

goroutine 9 [running]:
FAIL	b	1.000s
`,
		},
		{
			"after the tests",
			`=== RUN   TestGood
    a_test.go:1: good
--- PASS: TestGood (0.00s)
PASS
goroutines are left
FAIL	a	1.000s
# b
b_test.go:1:1: expected 'package'
FAIL	b [setup failed]
FAIL
`,
			`goroutines are left
FAIL	a	1.000s
# b
b_test.go:1:1: expected 'package'
FAIL	b [setup failed]
`,
		},
		{
			"a long story",
			"=== RUN   TestLong\n" + strings.Repeat("    x\n", 1000) + "    the end\n--- FAIL: TestLong (1.00s)\nFAIL\nFAIL\ta\t1.000s\n",
			"--- FAIL: TestLong\n" + strings.Repeat("    x\n", 100) + "    [701 lines]\n" + strings.Repeat("    x\n", 199) + "    the end\nFAIL\ta\t1.000s\n",
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			cmd := exec.Command("awk", "-f", "failures.awk")
			cmd.Stdin = strings.NewReader(test.log)
			got, err := cmd.CombinedOutput()
			if err != nil {
				t.Fatalf("%v: %s", err, got)
			}
			if string(got) != test.want {
				t.Errorf("got\n%s\nwant\n%s", got, test.want)
			}
		})
	}
}
