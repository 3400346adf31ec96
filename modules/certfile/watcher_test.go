package certfile

import (
	"context"
	"crypto/tls"
	"os"
	"path/filepath"
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"
)

const domain = "example.duckdns.org"

// TestRenewal replaces a pair in every way that programs do, and has new connections get
// the new certificate at the next look.
func TestRenewal(t *testing.T) {
	for _, tt := range []struct {
		name    string
		place   func(t *testing.T, folder string, p pair) files
		replace func(t *testing.T, folder string, p pair)
	}{
		{"written anew", plain, func(t *testing.T, folder string, p pair) { p.write(t, folder) }},
		{"renamed", plain, func(t *testing.T, folder string, p pair) {
			f := p.write(t, t.TempDir())
			rename(t, f.key, filepath.Join(folder, "key.pem"))
			rename(t, f.certificate, filepath.Join(folder, "cert.pem"))
		}},
		{"renamed with the times of the former", plain, func(t *testing.T, folder string, p pair) {
			f := p.write(t, t.TempDir())
			for _, name := range []string{"key.pem", "cert.pem"} {
				info, err := os.Stat(filepath.Join(folder, name))
				if err != nil {
					t.Fatal(err)
				}
				if err := os.Chtimes(filepath.Join(filepath.Dir(f.key), name), info.ModTime(), info.ModTime()); err != nil {
					t.Fatal(err)
				}
				rename(t, filepath.Join(filepath.Dir(f.key), name), filepath.Join(folder, name))
			}
		}},
		{"symlinks of dehydrated", func(t *testing.T, folder string, p pair) files {
			linked(t, folder, "1", p)
			return files{filepath.Join(folder, "cert.pem"), filepath.Join(folder, "key.pem")}
		}, func(t *testing.T, folder string, p pair) { linked(t, folder, "2", p) }},
		{"symlinks of certbot", func(t *testing.T, folder string, p pair) files {
			archived(t, folder, "1", p)
			return files{filepath.Join(folder, "live", "cert.pem"), filepath.Join(folder, "live", "key.pem")}
		}, func(t *testing.T, folder string, p pair) { archived(t, folder, "2", p) }},
		{"folder of Kubernetes", func(t *testing.T, folder string, p pair) files {
			swapped(t, folder, "1", p)
			symlink(t, "..data/cert.pem", filepath.Join(folder, "cert.pem"))
			symlink(t, "..data/key.pem", filepath.Join(folder, "key.pem"))
			return files{filepath.Join(folder, "cert.pem"), filepath.Join(folder, "key.pem")}
		}, func(t *testing.T, folder string, p pair) { swapped(t, folder, "2", p) }},
		{"one file", func(t *testing.T, folder string, p pair) files {
			path := filepath.Join(folder, "both.pem")
			writeFile(t, path, slices.Concat(p.certificate, p.key))
			return files{path, path}
		}, func(t *testing.T, folder string, p pair) {
			writeFile(t, filepath.Join(folder, "both.pem"), slices.Concat(p.key, p.certificate))
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				folder := t.TempDir()
				logged, w := newWatcher(t, tt.place(t, folder, ecdsaPair(t, domain)))
				begin(t, w)
				former := w.current.Load()
				logged.expect(t, "serving certificate from files")

				time.Sleep(3 * interval)
				synctest.Wait()
				tt.replace(t, folder, ecdsaPair(t, domain))
				if w.current.Load() != former {
					t.Error("the certificate is another before a look at the files")
				}
				time.Sleep(interval)
				synctest.Wait()
				if w.current.Load() == former {
					t.Error("it is the former certificate")
				}
				time.Sleep(3 * interval)
				fields := logged.expect(t, "serving renewed certificate from files")
				if want := w.current.Load().Leaf.NotAfter; !want.Equal(fields["not_after"].(time.Time)) {
					t.Errorf("got not_after %v, want %v", fields["not_after"], want)
				}
				if got := fields["subjects"].([]any); len(got) != 1 || got[0] != domain {
					t.Errorf("got subjects %v", got)
				}
			})
		})
	}
}

// TestProblems has files that cannot be used: the former certificate is served, the log
// says so once, and what comes after is served.
func TestProblems(t *testing.T) {
	const problem = "certificate files cannot be used; serving the former certificate"
	for _, tt := range []struct {
		name   string
		breaks func(t *testing.T, f files, p pair)
		want   string // of the error
	}{
		{"the key is the former", func(t *testing.T, f files, p pair) { writeFile(t, f.certificate, p.certificate) }, "are no pair: "},
		{"the certificate is the former", func(t *testing.T, f files, p pair) { writeFile(t, f.key, p.key) }, "are no pair: "},
		{"half written", func(t *testing.T, f files, p pair) {
			writeFile(t, f.key, p.key)
			writeFile(t, f.certificate, p.certificate[:len(p.certificate)/2])
		}, "cert.pem is not whole"},
		{"empty", func(t *testing.T, f files, _ pair) { writeFile(t, f.certificate, nil) }, "cert.pem is empty"},
		{"removed", func(t *testing.T, f files, _ pair) { remove(t, f.key) }, "no such file"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				logged, w := newWatcher(t, ecdsaPair(t, domain).write(t, t.TempDir()))
				begin(t, w)
				former := w.current.Load()
				logged.TakeAll()
				renewed := ecdsaPair(t, domain)

				tt.breaks(t, w.files, renewed)
				time.Sleep(interval)
				synctest.Wait()
				if logged.Len() > 0 {
					t.Errorf("it is logged at the first look: %v", logged.All())
				}
				time.Sleep(20 * interval)
				synctest.Wait()
				if w.current.Load() != former {
					t.Error("it is not the former certificate")
				}
				fields := logged.expect(t, problem)
				text, _ := fields["error"].(string)
				renewed.expectNoKey(t, text)
				contains(t, text, tt.want)

				renewed.write(t, filepath.Dir(w.files.key))
				time.Sleep(interval)
				synctest.Wait()
				if w.current.Load() == former {
					t.Error("it is still the former certificate")
				}
				logged.expect(t, "serving renewed certificate from files")
			})
		})
	}

	t.Run("one after the other", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			logged, w := newWatcher(t, ecdsaPair(t, domain).write(t, t.TempDir()))
			begin(t, w)
			logged.TakeAll()
			renewed := ecdsaPair(t, domain)
			writeFile(t, w.files.key, renewed.key)
			time.Sleep(interval)
			synctest.Wait()
			writeFile(t, w.files.certificate, renewed.certificate)
			time.Sleep(10 * interval)
			synctest.Wait()
			logged.expect(t, "serving renewed certificate from files")
		})
	})

	t.Run("another problem, and the former pair again", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			former := ecdsaPair(t, domain)
			logged, w := newWatcher(t, former.write(t, t.TempDir()))
			begin(t, w)
			logged.TakeAll()
			writeFile(t, w.files.certificate, nil)
			time.Sleep(10 * interval)
			synctest.Wait()
			contains(t, logged.expect(t, problem)["error"].(string), "is empty")
			writeFile(t, w.files.certificate, former.key)
			time.Sleep(10 * interval)
			synctest.Wait()
			contains(t, logged.expect(t, problem)["error"].(string), "are no pair")
			former.write(t, filepath.Dir(w.files.key))
			time.Sleep(10 * interval)
			synctest.Wait()
			logged.expect(t, "certificate files can be used again")
		})
	})

	t.Run("moved away and back", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			logged, w := newWatcher(t, ecdsaPair(t, domain).write(t, t.TempDir()))
			begin(t, w)
			logged.TakeAll()
			for range 2 {
				rename(t, w.files.key, w.files.key+".away")
				time.Sleep(10 * interval)
				synctest.Wait()
				logged.expect(t, problem)
				rename(t, w.files.key+".away", w.files.key)
				time.Sleep(10 * interval)
				synctest.Wait()
				logged.expect(t, "certificate files can be used again")
			}
		})
	})

	t.Run("touched", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			same := ecdsaPair(t, domain)
			logged, w := newWatcher(t, same.write(t, t.TempDir()))
			begin(t, w)
			served := w.current.Load()
			logged.TakeAll()
			same.write(t, filepath.Dir(w.files.key))
			time.Sleep(10 * interval)
			synctest.Wait()
			if logged.Len() > 0 || w.current.Load() != served {
				t.Errorf("the certificate is taken for another one: %v", logged.All())
			}
		})
	})
}

// TestValidity looks at what the log says in ten days, by what a certificate's life is.
func TestValidity(t *testing.T) {
	const day = 24 * time.Hour
	const soon, expired = "certificate is about to expire", "certificate has expired"
	repeat := func(message string, times int) []string { return slices.Repeat([]string{message}, times) }
	for _, tt := range []struct {
		name string
		life time.Duration
		want []string
	}{
		{"90 days", 90 * day, nil},
		{"19 days", 19 * day, nil},
		{"11 days", 11 * day, repeat(soon, 1)},
		{"6 days", 6 * day, append(repeat(soon, 1), repeat(expired, 5)...)},
		{"expired", time.Minute, repeat(expired, 11)},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				logged, w := newWatcher(t, newPair(t, tt.life, ecdsaKey(t), domain).write(t, t.TempDir()))
				if err := w.begin(); err != nil {
					t.Fatal(err)
				}
				for range 10 * 24 {
					time.Sleep(time.Hour)
					w.remind()
				}
				var got []string
				for _, entry := range logged.TakeAll()[1:] {
					if entry.Level != zapcore.WarnLevel {
						t.Errorf("got level %s", entry.Level)
					}
					got = append(got, entry.Message)
				}
				if !slices.Equal(got, tt.want) {
					t.Errorf("got  %q\nwant %q", got, tt.want)
				}
			})
		})
	}

	t.Run("at the beginning, and renewed", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			logged, w := newWatcher(t, newPair(t, time.Minute, ecdsaKey(t), domain).write(t, t.TempDir()))
			begin(t, w)
			logged.expect(t, "serving certificate from files", expired)
			newPair(t, 2*time.Minute, ecdsaKey(t), domain).write(t, filepath.Dir(w.files.key))
			time.Sleep(interval)
			synctest.Wait()
			logged.expect(t, "serving renewed certificate from files", expired)
		})
	})

	t.Run("not valid yet", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			f := ecdsaPair(t, domain).write(t, t.TempDir())
			logged, w := newWatcher(t, f)
			certificate, err := f.load()
			if err != nil {
				t.Fatal(err)
			}
			w.current.Store(certificate)
			certificate.Leaf.NotBefore = time.Now().Add(time.Hour)
			w.remind()
			logged.expect(t, "certificate is not valid yet")
		})
	})
}

// TestExplaining counts explanations: one after the configuration has come into force,
// and one for each new certificate.
func TestExplaining(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, w := newWatcher(t, ecdsaPair(t, domain).write(t, t.TempDir()))
		var inForce atomic.Bool
		var explained atomic.Int32
		w.inForce, w.explain = inForce.Load, func() { explained.Add(1) }
		begin(t, w)
		expect := func(want int32) {
			t.Helper()
			time.Sleep(10 * interval)
			synctest.Wait()
			if got := explained.Load(); got != want {
				t.Errorf("got %d explanations, want %d", got, want)
			}
		}
		expect(0)
		inForce.Store(true)
		expect(1)
		ecdsaPair(t, domain).write(t, filepath.Dir(w.files.key))
		expect(2)
		expect(2)
	})
}

// log is what a watcher has logged.
type log struct{ *observer.ObservedLogs }

// expect fails if the messages are others, and takes them. It returns the last one's
// fields.
func (l log) expect(t *testing.T, want ...string) map[string]any {
	t.Helper()
	var got []string
	var fields map[string]any
	for _, entry := range l.TakeAll() {
		got = append(got, entry.Message)
		fields = entry.ContextMap()
	}
	if !slices.Equal(got, want) {
		t.Fatalf("got  %q\nwant %q", got, want)
	}
	return fields
}

func newWatcher(t *testing.T, f files) (log, *watcher) {
	t.Helper()
	core, logs := observer.New(zapcore.DebugLevel)
	return log{logs}, &watcher{files: f, current: new(atomic.Pointer[tls.Certificate]), logger: zap.New(core)}
}

// begin begins and runs until the test ends.
func begin(t *testing.T, w *watcher) {
	t.Helper()
	if err := w.begin(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(cancel)
	go w.run(ctx)
}

// plain are two files.
func plain(t *testing.T, folder string, p pair) files {
	t.Helper()
	return p.write(t, folder)
}

// linked places a pair as dehydrated does: files with the time in their names, and
// symlinks beside them.
func linked(t *testing.T, folder, number string, p pair) {
	t.Helper()
	writeFile(t, filepath.Join(folder, "key-"+number+".pem"), p.key)
	writeFile(t, filepath.Join(folder, "cert-"+number+".pem"), p.certificate)
	relink(t, "key-"+number+".pem", filepath.Join(folder, "key.pem"))
	relink(t, "cert-"+number+".pem", filepath.Join(folder, "cert.pem"))
}

// archived places a pair as certbot does: numbered files in a folder, and symlinks in
// another, which are removed and made again.
func archived(t *testing.T, folder, number string, p pair) {
	t.Helper()
	for _, name := range []string{"archive", "live"} {
		if err := os.MkdirAll(filepath.Join(folder, name), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	for name, content := range map[string][]byte{"cert": p.certificate, "key": p.key} {
		writeFile(t, filepath.Join(folder, "archive", name+number+".pem"), content)
		link := filepath.Join(folder, "live", name+".pem")
		os.Remove(link)
		symlink(t, "../archive/"+name+number+".pem", link)
	}
}

// swapped places a pair as Kubernetes does: a folder, and one symlink to it.
func swapped(t *testing.T, folder, number string, p pair) {
	t.Helper()
	name := "..data" + number
	if err := os.Mkdir(filepath.Join(folder, name), 0o700); err != nil {
		t.Fatal(err)
	}
	p.write(t, filepath.Join(folder, name))
	relink(t, name, filepath.Join(folder, "..data"))
}

// relink replaces a symlink at one stroke.
func relink(t *testing.T, to, path string) {
	t.Helper()
	symlink(t, to, path+".new")
	rename(t, path+".new", path)
}

func rename(t *testing.T, from, to string) {
	t.Helper()
	if err := os.Rename(from, to); err != nil {
		t.Fatal(err)
	}
}
