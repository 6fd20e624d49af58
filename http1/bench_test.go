package http1

import (
	"bytes"
	"testing"

	"github.com/cloud-cup/cloud-cup/message"
)

const (
	wrkGet = "GET / HTTP/1.1\r\nHost: 127.0.0.1:8080\r\n\r\n"

	browserGet = "GET /static/app/main.7f3c1d.js?v=20261122 HTTP/1.1\r\n" +
		"Host: www.example.com\r\n" +
		"Connection: keep-alive\r\n" +
		"sec-ch-ua: \"Chromium\";v=\"140\", \"Not=A?Brand\";v=\"24\", \"Google Chrome\";v=\"140\"\r\n" +
		"sec-ch-ua-mobile: ?0\r\n" +
		"User-Agent: Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/140.0.0.0 Safari/537.36\r\n" +
		"sec-ch-ua-platform: \"Linux\"\r\n" +
		"Accept: */*\r\n" +
		"Sec-Fetch-Site: same-origin\r\n" +
		"Sec-Fetch-Mode: no-cors\r\n" +
		"Sec-Fetch-Dest: script\r\n" +
		"Referer: https://www.example.com/index.html\r\n" +
		"Accept-Encoding: gzip, deflate, br, zstd\r\n" +
		"Accept-Language: en-GB,en;q=0.9,de;q=0.8\r\n" +
		"Cookie: session=4f1c2b7a9d0e4c3fa2b1; theme=dark\r\n\r\n"

	nginxHead = "HTTP/1.1 200 OK\r\n" +
		"Server: nginx/1.22.1\r\n" +
		"Date: Sun, 22 Nov 2026 10:00:00 GMT\r\n" +
		"Content-Type: text/html\r\n" +
		"Content-Length: 100\r\n" +
		"Last-Modified: Sat, 21 Nov 2026 09:00:00 GMT\r\n" +
		"Connection: keep-alive\r\n" +
		"ETag: \"6740a5c2-64\"\r\n" +
		"Accept-Ranges: bytes\r\n\r\n"
)

func benchmarkRequest(b *testing.B, head string) {
	var (
		p   RequestParser
		h   message.Head
		lim Limits
	)
	text := []byte(head + "following bytes")
	b.SetBytes(int64(len(head)))
	b.ReportAllocs()
	for b.Loop() {
		if n, err := p.Parse(&h, text, &lim); err != nil || n != len(head) {
			b.Fatal(n, err)
		}
	}
}

func BenchmarkRequestWrk(b *testing.B)     { benchmarkRequest(b, wrkGet) }
func BenchmarkRequestBrowser(b *testing.B) { benchmarkRequest(b, browserGet) }

func BenchmarkResponseNginx(b *testing.B) {
	var (
		p   ResponseParser
		h   message.Head
		lim Limits
	)
	text := []byte(nginxHead + "following bytes")
	b.SetBytes(int64(len(nginxHead)))
	b.ReportAllocs()
	for b.Loop() {
		if n, err := p.Parse(&h, text, &lim, message.MethodGet); err != nil || n != len(nginxHead) {
			b.Fatal(n, err)
		}
	}
}

func BenchmarkChunked(b *testing.B) {
	var text []byte
	for range 16 {
		text = AppendChunkHead(text, 1024)
		text = append(text, bytes.Repeat([]byte("x"), 1024)...)
		text = append(text, "\r\n"...)
	}
	text = append(text, "0\r\n\r\n"...)
	b.SetBytes(int64(len(text)))
	b.ReportAllocs()
	for b.Loop() {
		var c Chunked
		for rest := text; !c.Done(); {
			_, n, err := c.Next(rest)
			if err != nil {
				b.Fatal(err)
			}
			rest = rest[n:]
		}
	}
}
