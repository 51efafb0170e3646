import Testing
import VMCore

@Suite struct UART16550ATests {
    struct Bench {
        var uart = UART16550A()
        var now = Nanoseconds(0)

        enum Register: UInt16 { case data, ier, iir, lcr, mcr, lsr, msr, scr }

        subscript(register: Register) -> UInt8 {
            mutating get { uart.readByte(register.rawValue, at: now) }
            set { uart.writeByte(register.rawValue, newValue, at: now) }
        }

        mutating func wait(_ nanoseconds: UInt64) {
            now = now + Nanoseconds(nanoseconds)
            uart.advance(to: now)
        }

        /// OUT2 on, FIFOs on with `fcr`, interrupts `ier`.
        init(ier: UInt8 = 0, fcr: UInt8? = nil) {
            self[.mcr] = 0x0b
            if let fcr { self[.iir] = fcr }
            self[.ier] = ier
        }

        mutating func receive(_ text: String) -> Int {
            text.utf8.filter { uart.receive($0, at: now) }.count
        }
    }

    @Test func registersAfterReset() {
        var u = Bench()
        u.uart = UART16550A()
        #expect([u[.data], u[.ier], u[.iir], u[.lcr], u[.mcr], u[.lsr], u[.msr], u[.scr]]
            == [0, 0, 1, 0, 0, 0x60, 0xb0, 0])
    }

    @Test func registersKeepTheirWritableBits() {
        var u = Bench()
        for register in [Bench.Register.ier, .lcr, .mcr, .scr] {
            u[register] = 0x5a
        }
        #expect((u[.ier], u[.lcr], u[.mcr], u[.scr]) == (0x0a, 0x5a, 0x1a, 0x5a))
        u[.lsr] = 0xff
        u[.msr] = 0xff
        #expect(u[.lsr] == 0x60)
    }

    @Test func dlabShowsTheDivisor() {
        var u = Bench()
        u[.lcr] = 0x83
        #expect((u[.data], u[.ier]) == (12, 0))
        u[.data] = 0x01
        u[.ier] = 0x02
        #expect((u[.data], u[.ier]) == (0x01, 0x02))
        u[.lcr] = 0x03
        #expect((u[.data], u[.ier]) == (0, 0))
        #expect(u.uart.takeOutput().count == 0)
    }

    @Test func sentBytesComeOutInOrder() {
        var u = Bench()
        #expect(!u.uart.hasOutput)
        for byte in "hello".utf8 {
            u[.data] = byte
            #expect(u[.lsr] == 0x60, "a polling guest never waits")
        }
        #expect(u.uart.hasOutput)
        #expect(u.uart.takeOutput() == Array("hello".utf8))
        #expect(u.uart.takeOutput() == [])
    }

    @Test func withoutFIFOsOneByteFits() {
        var u = Bench(ier: 1)
        #expect(u.uart.canReceive)
        #expect(u.receive("ab") == 1)
        #expect(!u.uart.canReceive)
        #expect(u.uart.irq)
        #expect(u[.iir] == 0x04)
        #expect(u[.lsr] == 0x61)
        #expect(u[.data] == UInt8(ascii: "a"))
        #expect(!u.uart.irq)
        #expect(u.receive("b") == 1)
        #expect(u[.data] == UInt8(ascii: "b"))
    }

    @Test func theFIFOHolds16AndRefusesMore() {
        var u = Bench(fcr: 1)
        #expect(u.receive("0123456789abcdefXYZ") == 16)
        #expect(!u.uart.canReceive)
        #expect(u[.lsr] == 0x61, "a refused byte is no overrun")
        var read: [UInt8] = []
        while u[.lsr] & 1 != 0 { read.append(u[.data]) }
        #expect(read == Array("0123456789abcdef".utf8))
    }

    @Test func triggerLevels() {
        for (fcr, level) in [(0x01, 1), (0x41, 4), (0x81, 8), (0xc1, 14)] as [(UInt8, Int)] {
            var u = Bench(ier: 1, fcr: fcr)
            for n in 1...16 {
                #expect(u.receive("x") == 1)
                #expect(u.uart.irq == (n >= level))
            }
            #expect(u[.iir] == 0xc4)
            for n in (0...15).reversed() {
                _ = u[.data]
                #expect(u.uart.irq == (n >= level))
            }
        }
    }

    @Test func charactersBelowTheTriggerLevelTimeOut() {
        var u = Bench(ier: 1, fcr: 0x81)
        u[.lcr] = 0x83
        u[.data] = 1
        u[.lcr] = 0x03
        let fourCharacters: UInt64 = 4 * 10 * 1_000_000_000 / 115_200
        #expect(u.receive("ab") == 2)
        #expect(u.uart.nextDeadline(after: u.now) == Nanoseconds(fourCharacters))
        u.wait(fourCharacters - 1)
        #expect(!u.uart.irq)
        u.wait(1)
        #expect(u.uart.irq)
        #expect(u[.iir] == 0xcc)
        _ = u[.data]
        #expect(!u.uart.irq, "a read restarts the time-out")
        u.wait(fourCharacters)
        #expect(u[.iir] == 0xcc)
        _ = u[.data]
        u.wait(fourCharacters * 9)
        #expect(u[.iir] == 0xc1, "an empty FIFO doesn't time out")
        #expect(u.uart.nextDeadline(after: u.now) == nil)
    }

    @Test func transmitterInterruptIsRaisedByEnablingItAndClearedByReadingIIR() {
        var u = Bench()
        #expect(!u.uart.irq)
        u[.ier] = 2
        #expect(u.uart.irq)
        #expect(u[.iir] == 0x02)
        #expect(!u.uart.irq)
        #expect(u[.iir] == 0x01)
        u[.ier] = 0
        u[.ier] = 2
        #expect(u[.iir] == 0x02, "enabling it again raises it again")
        u[.ier] = 2
        #expect(u[.iir] == 0x01)
    }

    @Test func transmitterInterruptIsClearedByWritingTHRAndComesBackSoon() {
        var u = Bench(ier: 2)
        #expect(u.uart.irq)
        u[.data] = 0x41
        #expect(!u.uart.irq)
        #expect(u.uart.nextDeadline(after: u.now) == UART16550A.transmitInterval)
        u.wait(UART16550A.transmitInterval.rawValue)
        #expect(u.uart.irq)
        #expect(u[.iir] == 0x02)
        u.wait(1_000_000)
        #expect(!u.uart.irq)
    }

    @Test func enablingTheTransmitterInterruptAfterAWriteRaisesItOnce() {
        var u = Bench()
        u[.data] = 0x41
        u[.ier] = 2
        #expect(u[.iir] == 0x02)
        u.wait(UART16550A.transmitInterval.rawValue)
        #expect(!u.uart.irq)
    }

    @Test func overrunKeepsTheFIFOButReplacesASingleByte() {
        var u = Bench(ier: 4, fcr: 1)
        u[.mcr] = 0x18
        for byte in 0..<17 as Range<UInt8> { u[.data] = byte }
        #expect(u.uart.irq)
        #expect(u[.iir] == 0xc6)
        #expect(u[.lsr] == 0x63)
        #expect(u[.lsr] == 0x61, "reading clears it")
        #expect(!u.uart.irq)
        #expect(u[.data] == 0)
        u[.iir] = 0
        u[.data] = 1
        u[.data] = 2
        #expect(u[.lsr] == 0x63)
        #expect(u[.data] == 2)
    }

    @Test func loopbackReturnsDataAndModemLines() {
        var u = Bench()
        u[.mcr] = 0x10
        _ = u[.msr]
        u[.data] = 0x5a
        #expect(u.uart.takeOutput().count == 0, "nothing goes out")
        #expect(u[.data] == 0x5a)
        #expect(!u.uart.canReceive)
        #expect(u.uart.receive(1, at: u.now) == false)
        for (mcr, msr) in [(0x11, 0x22), (0x12, 0x13), (0x14, 0x41), (0x18, 0x8c)] as [(UInt8, UInt8)] {
            u[.mcr] = mcr
            #expect(u[.msr] == msr, "lines and what has changed; TERI on the end of a ring")
            #expect(u[.msr] == msr & 0xf0)
        }
        u[.mcr] = 0x1a
        #expect(u[.msr] & 0xf0 == 0x90, "what Linux looks for")
    }

    @Test func modemStatusInterrupt() {
        var u = Bench(ier: 8)
        #expect(!u.uart.irq)
        u[.mcr] = 0x18
        #expect(u.uart.irq)
        #expect(u[.iir] == 0x00)
        _ = u[.msr]
        #expect(u[.iir] == 0x01)
    }

    @Test func out2GatesTheLineButNotIIR() {
        var u = Bench(ier: 1)
        u[.mcr] = 0
        #expect(u.receive("x") == 1)
        #expect(!u.uart.irq)
        #expect(u[.iir] == 0x04)
        u[.mcr] = 8
        #expect(u.uart.irq)
    }

    @Test func interruptsHaveTheirPriorities() {
        var u = Bench(ier: 0x0f, fcr: 1)
        u[.mcr] = 0x18
        for _ in 0..<17 { u[.data] = 1 }
        u.wait(UART16550A.transmitInterval.rawValue)
        #expect(u[.iir] == 0xc6)
        _ = u[.lsr]
        #expect(u[.iir] == 0xc4)
        while u[.lsr] & 1 != 0 { _ = u[.data] }
        #expect(u[.iir] == 0xc2)
        #expect(u[.iir] == 0xc0)
        _ = u[.msr]
        #expect(u[.iir] == 0xc1)
    }

    @Test func fcrClearsAndSwitchesTheFIFOs() {
        var u = Bench(fcr: 1)
        #expect(u.receive("abc") == 3)
        u[.iir] = 0x03
        #expect(u[.lsr] == 0x60)
        #expect(u.receive("abc") == 3)
        u[.iir] = 0x04
        #expect(u[.iir] == 0x01)
        #expect(u[.lsr] == 0x60, "switching them off empties them")
        #expect(u.receive("a") == 1)
        u[.iir] = 0x02
        #expect(u[.lsr] == 0x61, "the other bits need bit 0")
    }
}
