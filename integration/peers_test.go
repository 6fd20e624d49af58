//go:build peers

package integration

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"image"
	"image/color"
	"image/png"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// peer is the path of a program that others wrote. Under this tag a missing one
// is a failure, not a reason to skip.
func peer(t *testing.T, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	require.NoError(t, err, "make test-peers installs what these tests need")
	return path
}

// serve starts a program of the peers for the length of the test and waits
// until it accepts connections on addr.
func serve(t *testing.T, addr string, cmd *exec.Cmd) {
	t.Helper()
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	cmd.WaitDelay = time.Second
	started := make(chan error)
	starter <- func() { started <- cmd.Start() }
	require.NoError(t, <-started)
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM) // it may have ended
		_ = cmd.Wait()
		for _, pid := range groupOf(cmd.Process.Pid) {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
		if t.Failed() {
			t.Logf("%s: %s", cmd.Path, out.String())
		}
	})
	eventually(t, filepath.Base(cmd.Path)+" to listen", func() bool {
		conn, err := net.Dial("tcp", addr)
		if err == nil {
			conn.Close()
		}
		return err == nil
	})
}

// site is a folder of real files: a page with images, a text, and a file of
// 200 MiB. It returns the folder and the large file's sum.
func site(t *testing.T) (dir, sum string) {
	t.Helper()
	dir = t.TempDir()
	require.NoError(t, os.Chmod(dir, 0o755))
	page := "<!doctype html><title>Cup</title><body><h1>A page</h1>"
	for i := range 20 {
		name := fmt.Sprintf("image-%d.png", i)
		picture := image.NewRGBA(image.Rect(0, 0, 300, 200))
		for x := range 300 {
			for y := range 200 {
				picture.Set(x, y, color.RGBA{uint8(x * (i + 1)), uint8(y * 7), uint8(x ^ y), 255})
			}
		}
		var b bytes.Buffer
		require.NoError(t, png.Encode(&b, picture))
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), b.Bytes(), 0o644))
		page += fmt.Sprintf("<img src=%q>", name)
	}
	// What a browser makes of it tells whether all images came.
	page += `<script>onload = () => {
		const all = [...document.images];
		document.title = all.filter(i => i.complete && i.naturalWidth == 300).length + " of " + all.length + " images";
	}</script></body>`
	require.NoError(t, os.WriteFile(filepath.Join(dir, "index.html"), []byte(page), 0o644))
	f, err := os.OpenFile(filepath.Join(dir, "large.bin"), os.O_CREATE|os.O_WRONLY, 0o644)
	require.NoError(t, err)
	_, err = io.Copy(f, content(11, 200<<20))
	require.NoError(t, errors.Join(err, f.Close()))
	sum, err = sha256Of(11, 200<<20)
	require.NoError(t, err)
	return dir, sum
}

// startNginx serves dir and takes uploads of any size at /upload/.
func startNginx(t *testing.T, dir string) string {
	t.Helper()
	addr := freePort(t)
	config := writeFile(t, "nginx.conf", fmt.Sprintf(`
		daemon off; master_process off; pid %[1]s/nginx.pid; error_log stderr;
		events { worker_connections 4000; }
		http {
			include /etc/nginx/mime.types; access_log off; sendfile on; keepalive_requests 1000000;
			client_body_temp_path %[1]s/body; proxy_temp_path %[1]s/proxy; fastcgi_temp_path %[1]s/f; uwsgi_temp_path %[1]s/u; scgi_temp_path %[1]s/s;
			server { listen %[2]s backlog=4096; root %[3]s; location = /small { return 200 "hello"; } }
		}`, t.TempDir(), addr, dir))
	serve(t, addr, exec.Command(peer(t, "nginx"), "-e", "stderr", "-c", config))
	return addr
}

// startPython serves dir by Python's http.server, which speaks HTTP/1.0.
func startPython(t *testing.T, dir string) string {
	t.Helper()
	addr := freePort(t)
	_, port, err := net.SplitHostPort(addr)
	require.NoError(t, err)
	cmd := exec.Command(peer(t, "python3"), "-m", "http.server", "--bind", "127.0.0.1", "--directory", dir, port)
	serve(t, addr, cmd)
	return addr
}

// Files of real servers come through real clients as they are.
func TestPeersFiles(t *testing.T) {
	dir, sum := site(t)
	servers := map[string]string{"nginx": startNginx(t, dir), "python": startPython(t, dir)}
	curl := peer(t, "curl")
	for name, addr := range servers {
		t.Run(name, func(t *testing.T) {
			eachEngine(t, func(t *testing.T, engine string) {
				c := startCup(t, engine, configOf([]string{addr}, oneWorker))
				for _, file := range []string{"index.html", "image-7.png"} {
					got, stderr, code := run(t, curl, "-sS", "--fail", "http://"+c.addr+"/"+file)
					require.Zero(t, code, stderr)
					want, err := os.ReadFile(filepath.Join(dir, file))
					require.NoError(t, err)
					require.Equal(t, string(want), got)
				}
				_, _, code := run(t, curl, "-sS", "--fail", "http://"+c.addr+"/missing")
				require.Equal(t, 22, code, "curl's code for a 404")
				got := filepath.Join(t.TempDir(), "got")
				_, stderr, code := run(t, curl, "-sS", "--fail", "-o", got, "http://"+c.addr+"/large.bin")
				require.Zero(t, code, stderr)
				require.Equal(t, sum, sumOf(t, got))
				require.Less(t, peakRSS(t, c.workers()[0]), workerRSSMax)
			})
		})
	}
}

func sumOf(t *testing.T, path string) string {
	t.Helper()
	f, err := os.Open(path)
	require.NoError(t, err)
	defer f.Close()
	h := sha256.New()
	_, err = io.Copy(h, f)
	require.NoError(t, err)
	return fmt.Sprintf("%x", h.Sum(nil))
}

// curl loads up and down, also slowly.
func TestPeersCurl(t *testing.T) {
	curl := peer(t, "curl")
	size := pick[int64](1<<30, 100<<20)
	eachEngine(t, func(t *testing.T, engine string) {
		b := startBackend(t, "a")
		c := startCup(t, engine, configOf([]string{b.addr}, oneWorker))
		file := filepath.Join(t.TempDir(), "content")
		down := fmt.Sprintf("http://%s/%d/13", c.addr, size)
		sum, err := sha256Of(13, size)
		require.NoError(t, err)
		for _, query := range []string{"", "?chunked"} {
			_, stderr, code := run(t, curl, "-sS", "--fail", "-o", file, down+query)
			require.Zero(t, code, stderr)
			require.Equal(t, sum, sumOf(t, file))
		}
		// The backend compares what it gets; curl waits for 100 Continue.
		for _, framing := range []string{"X-A: length", "Transfer-Encoding: chunked"} {
			out, stderr, code := run(t, curl, "-sS", "--fail", "-X", "POST", "-H", framing, "-H", "Expect: 100-continue", "-T", file, down)
			require.Zero(t, code, stderr)
			require.Equal(t, "ok", out)
		}
		slowSize := size / 20
		sum, err = sha256Of(13, slowSize)
		require.NoError(t, err)
		_, stderr, code := run(t, curl, "-sS", "--fail", "--limit-rate", strconv.FormatInt(slowSize/2, 10), "-o", file,
			fmt.Sprintf("http://%s/%d/13", c.addr, slowSize))
		require.Zero(t, code, stderr)
		require.Equal(t, sum, sumOf(t, file))
		peak := peakRSS(t, c.workers()[0])
		t.Logf("peak RSS of the worker: %.1f MiB", float64(peak)/(1<<20))
		require.Less(t, peak, workerRSSMax)
	})
}

// A browser loads a page with all its images.
func TestPeersChromium(t *testing.T) {
	dir, _ := site(t)
	chromium := peer(t, "chromium")
	addr := startNginx(t, dir)
	eachEngine(t, func(t *testing.T, engine string) {
		c := startCup(t, engine, configOf([]string{addr}, `"workers": 2`))
		stdout, stderr, code := run(t, chromium, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic",
			"--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync",
			"--user-data-dir="+t.TempDir(), "--dump-dom", "http://"+c.addr+"/index.html")
		require.Zero(t, code, stderr)
		require.Contains(t, stdout, "<title>20 of 20 images</title>")
		require.GreaterOrEqual(t, c.status().Totals.Requests, uint64(21))
	})
}

var (
	wrkErrors   = regexp.MustCompile(`(?m)^\s*(Socket errors|Non-2xx).*$`)
	wrkRequests = regexp.MustCompile(`(\d+) requests in`)
)

// wrk sees no error at any number of connections, and the worker allocates
// nothing for its requests.
func TestPeersWrk(t *testing.T) {
	wrk := peer(t, "wrk")
	addr := startNginx(t, t.TempDir())
	eachEngine(t, func(t *testing.T, engine string) {
		c := startCup(t, engine, configOf([]string{addr}, oneWorker))
		for _, connections := range []int{1, 64, 256, 1000} {
			load := func(seconds int) int {
				stdout, stderr, code := run(t, wrk, "-t1", "-c", strconv.Itoa(connections), "-d", fmt.Sprint(seconds, "s"), "--timeout", "10s", "http://"+c.addr+"/small")
				require.Zero(t, code, stderr)
				require.Empty(t, wrkErrors.FindString(stdout), stdout)
				m := wrkRequests.FindStringSubmatch(stdout)
				require.NotNil(t, m, stdout)
				n, err := strconv.Atoi(m[1])
				require.NoError(t, err)
				return n
			}
			load(1) // connections and their memory come into being
			objects := func() int64 { return int64(c.status().Totals.HeapObjects) }
			asking := -objects() + objects()
			before := objects()
			n := load(pick(30, 2))
			made := objects() - before - asking
			t.Logf("%d connections: %d requests, %d heap objects", connections, n, made)
			require.Greater(t, n, 100)
			require.LessOrEqual(t, float64(made), 100*max(1, float64(n)/100_000))
		}
		s := c.status()
		for reason, n := range s.Totals.Reasons {
			// wrk leaves in the middle of its last requests.
			require.Equal(t, "client_gone", reason, "%d times", n)
		}
	})
}

// The loop's thread makes no other calls than its engine's, and when there is
// nothing to do none but those that answer the master's heartbeat.
func TestPeersStrace(t *testing.T) {
	strace := peer(t, "strace")
	allowed := map[string][]string{
		"uring": {"io_uring_enter"},
		"epoll": {"epoll_pwait", "epoll_wait", "epoll_pwait2", "recvfrom", "recvmsg", "read", "sendto", "sendmsg", "write", "writev"},
	}
	// The Go scheduler's own, when it takes the P back; and memory that the
	// pools or the runtime's heap take or give back now and then.
	ofNoRequest := []string{"futex", "rt_sigreturn", "getpid", "tgkill", "sched_yield", "mmap", "munmap", "madvise"}
	eachEngine(t, func(t *testing.T, engine string) {
		c := startCup(t, engine, configOf([]string{startPlainBackend(t)}, oneWorker))
		client := newPlainClient(t, c.addr)
		for range 2000 {
			require.NoError(t, client.ask())
		}
		pid := c.workers()[0]
		// The loop is locked to the thread that the process began with.
		requests := traced(t, strace, pid, func() {
			for range 2000 {
				require.NoError(t, client.ask())
			}
		})
		t.Logf("2000 requests: %v", requests)
		total := 0
		for call, n := range requests {
			if slices.Contains(ofNoRequest, call) {
				require.Less(t, n, 400, "%s is no call of a request", call)
				continue
			}
			if call == "ppoll" && engine == "uring" {
				// One a second for all receives that may have missed an end.
				require.Less(t, n, 10)
				continue
			}
			require.Contains(t, allowed[engine], call)
			total += n
		}
		require.GreaterOrEqual(t, total, 2000)

		// A new worker looks after its listener a few times in its first
		// seconds; then it comes to rest.
		for try := 0; ; try++ {
			calls := traced(t, strace, pid, func() { <-time.After(2 * time.Second) })
			if t.Logf("idle for 2 s: %v", calls); atRest(calls, allowed[engine]) {
				break
			}
			require.Less(t, try, 10, "an idle loop makes calls")
		}
	})
}

// atRest reports whether two seconds of calls are no more than three heartbeats
// take: the loop is woken, waits for a moment in its own way and then in the
// scheduler's. What the scheduler does itself is the more the slower it is
// traced.
func atRest(calls map[string]int, engine []string) bool {
	own, scheduler := 0, 0
	for call, n := range calls {
		switch {
		case slices.Contains(engine, call):
			own += n
		case call == "futex" || call == "rt_sigreturn":
			scheduler += n
		default:
			return false
		}
	}
	return own <= 3*3 && scheduler <= 3*10
}

var straceCall = regexp.MustCompile(`^(\d+\.\d+) ([a-z0-9_]+)\(`)

// attachTime is how long a thread may be disturbed by strace's coming.
const attachTime = 500 * time.Millisecond

// traced counts the calls of a thread while work runs.
func traced(t *testing.T, strace string, thread int, work func()) map[string]int {
	t.Helper()
	file := filepath.Join(t.TempDir(), "trace")
	cmd := exec.Command(strace, "-q", "-ttt", "-o", file, "-p", strconv.Itoa(thread))
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	require.NoError(t, cmd.Start())
	eventually(t, "strace to attach", func() bool {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", thread))
		require.NoError(t, err)
		return strings.Contains(string(text), fmt.Sprintf("TracerPid:\t%d\n", cmd.Process.Pid))
	})
	<-time.After(attachTime)
	from := time.Now()
	work()
	to := time.Now()
	require.NoError(t, cmd.Process.Signal(syscall.SIGINT))
	_ = cmd.Wait() // ended by our signal
	text, err := os.ReadFile(file)
	require.NoError(t, err, stderr.String())
	calls := map[string]int{}
	for line := range strings.Lines(string(text)) {
		m := straceCall.FindStringSubmatch(line)
		if m == nil {
			continue // a signal, or the rest of a call
		}
		seconds, err := strconv.ParseFloat(m[1], 64)
		require.NoError(t, err)
		if at := time.UnixMicro(int64(seconds * 1e6)); at.After(from) && at.Before(to) {
			calls[m[2]]++
		}
	}
	return calls
}

// What a server says of a file comes through as it is.
func TestPeersFields(t *testing.T) {
	dir, _ := site(t)
	addr := startNginx(t, dir)
	eachEngine(t, func(t *testing.T, engine string) {
		c := startCup(t, engine, configOf([]string{addr}, oneWorker))
		var bodies [2][]byte
		var types [2]string
		for i, from := range []string{addr, c.addr} {
			resp, err := http.Get("http://" + from + "/image-3.png")
			require.NoError(t, err)
			bodies[i], err = io.ReadAll(resp.Body)
			require.NoError(t, errors.Join(err, resp.Body.Close()))
			types[i] = resp.Header.Get("Content-Type") + resp.Header.Get("ETag") + resp.Header.Get("Server")
		}
		require.Equal(t, bodies[0], bodies[1])
		require.Equal(t, types[0], types[1])
		http.DefaultClient.CloseIdleConnections()
	})
}

// sha256Of is the content's, as sha256sum prints it.
func sha256Of(seed, size int64) (string, error) {
	h := sha256.New()
	_, err := io.Copy(h, content(seed, size))
	return fmt.Sprintf("%x", h.Sum(nil)), err
}
