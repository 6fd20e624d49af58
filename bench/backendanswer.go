package main

import (
	"bytes"
	"crypto/sha1"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"strconv"
)

// What the backend serves: GET and POST of /bytes/N with N bytes, POST after it
// has read the whole body, whose length must be told; and WebSocket (RFC 6455)
// on /echo, which returns each frame as it came.
const (
	backendPath     = "/bytes/"
	backendEcho     = "/echo"
	backendBytesMax = 16 << 20
	backendPartMax  = 16 << 10 // bound of a head, and of a frame
)

// backendBody is the body of n bytes.
func backendBody(n int) []byte { return bytes.Repeat([]byte("0123456789abcde\n"), n/16+1)[:n] }

// answer queues the answers to all that is whole in data and returns the rest.
// It reports whether all was what this backend serves.
func (b *backend) answer(c *backendConn, data []byte) (rest []byte, ok bool) {
	for {
		if c.tunnel {
			return b.echo(c, data)
		}
		if c.body > 0 {
			n := min(c.body, len(data))
			c.body, data = c.body-n, data[n:]
			if c.body > 0 {
				return nil, true
			}
			if !b.respond(c, c.number) {
				return nil, false
			}
		}
		end := bytes.Index(data, []byte("\r\n\r\n"))
		if end < 0 {
			return data, true
		}
		if !b.request(c, data[:end+len("\r\n")]) {
			return nil, false
		}
		data = data[end+len("\r\n\r\n"):]
	}
}

// request does what a head asks for. Each of its lines has its end.
func (b *backend) request(c *backendConn, head []byte) bool {
	if target, found := bytes.CutPrefix(head, []byte("GET "+backendPath)); found {
		stop := bytes.IndexByte(target, ' ')
		if stop < 0 {
			return false
		}
		if b.number == string(target[:stop]) {
			c.queue(b.last)
			return true
		}
		return b.respond(c, string(target[:stop]))
	}
	if target, found := bytes.CutPrefix(head, []byte("POST "+backendPath)); found {
		stop := bytes.IndexByte(target, ' ')
		length, err := strconv.Atoi(string(field(head, "Content-Length")))
		if stop < 0 || err != nil || length < 0 {
			return false
		}
		c.number, c.body = string(target[:stop]), length
		return length > 0 || b.respond(c, c.number)
	}
	key := field(head, "Sec-WebSocket-Key")
	if !bytes.HasPrefix(head, []byte("GET "+backendEcho+" ")) || key == nil {
		return false
	}
	c.queue(fmt.Appendf(nil, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: %s\r\n\r\n",
		webSocketAccept(key)))
	c.tunnel = true
	return true
}

// field is the value of a head's field, nil without.
func field(head []byte, name string) []byte {
	for line := range bytes.Lines(head) {
		if got, value, found := bytes.Cut(line, []byte(":")); found && bytes.EqualFold(got, []byte(name)) {
			return bytes.TrimSpace(value)
		}
	}
	return nil
}

// webSocketAccept is what shows that a server speaks WebSocket, section 4.2.2.
func webSocketAccept(key []byte) string {
	sum := sha1.Sum(append(bytes.Clone(key), "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"...))
	return base64.StdEncoding.EncodeToString(sum[:])
}

// queue adds an answer to what is sent next.
func (c *backendConn) queue(answer []byte) {
	if len(c.out) == 0 {
		c.out = answer[:len(answer):len(answer)] // shared: an append copies it
	} else {
		c.out = append(c.out, answer...)
	}
}

// respond answers with as many bytes as number says.
func (b *backend) respond(c *backendConn, number string) bool {
	if b.number != number {
		n, err := strconv.Atoi(number)
		if err != nil || n < 0 || n > backendBytesMax {
			return false
		}
		head := fmt.Sprintf("HTTP/1.1 200 OK\r\nServer: bench\r\nDate: %s\r\nContent-Type: text/plain\r\nContent-Length: %d\r\n\r\n", b.date, n)
		b.number, b.last = number, append([]byte(head), backendBody(n)...)
	}
	c.queue(b.last)
	return true
}

// A frame's begin (RFC 6455, section 5.2).
const (
	frameText     = 0x81 // the first byte of a whole message
	frameMasked   = 0x80 // of the second byte
	frameLength   = 0x7f // of the second byte
	frameShortMax = 125
	frameLength16 = 126 // the length is in the next two bytes
	frameKeyBytes = 4
)

// frame finds the first frame of data: where its masking key begins and where
// it ends, which is 0 if it is not whole. A server's frames have no key.
func frame(data []byte) (key, end int, ok bool) {
	if len(data) < 2 {
		return 0, 0, true
	}
	masked, length := data[1]&frameMasked != 0, int(data[1]&frameLength)
	key = 2
	if length > frameShortMax {
		if length > frameLength16 {
			return 0, 0, false
		}
		if len(data) < 4 {
			return 0, 0, true
		}
		key, length = 4, int(binary.BigEndian.Uint16(data[2:]))
	}
	end = key + frameKeyBytes + length
	if len(data) < end {
		end = 0
	}
	return key, end, masked
}

// echo queues the whole frames of data, not masked as servers do it, and
// returns the rest.
func (b *backend) echo(c *backendConn, data []byte) (rest []byte, ok bool) {
	b.frames = append(b.frames[:0], c.out...) // the answer to the request, at first
	for {
		at, end, ok := frame(data)
		if !ok {
			return nil, false
		}
		if end == 0 {
			c.out = b.frames
			return data, true
		}
		b.frames = append(append(b.frames, data[0], data[1]&^frameMasked), data[2:at]...)
		key := data[at : at+frameKeyBytes]
		for i, v := range data[at+frameKeyBytes : end] {
			b.frames = append(b.frames, v^key[i%frameKeyBytes])
		}
		data = data[end:]
	}
}
