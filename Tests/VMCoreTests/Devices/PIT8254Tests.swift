import Testing
import VMCore

@Suite struct PIT8254Tests {
    /// A timer with a clock that is set in CLK pulses.
    struct Bench {
        var pit = PIT8254()
        var tick: UInt64 = 0

        var now: Nanoseconds { PIT8254.clock.time(ofTick: tick)! }

        /// Programs a counter: mode, access 3 unless told, count.
        mutating func program(_ channel: Int, mode: UInt8, count: UInt16, bcd: Bool = false) {
            control(UInt8(channel) << 6 | 0b11_0000 | mode << 1 | (bcd ? 1 : 0))
            write(channel, UInt8(truncatingIfNeeded: count))
            write(channel, UInt8(truncatingIfNeeded: count >> 8))
        }

        mutating func control(_ value: UInt8) { pit.writeByte(3, value, at: now) }
        mutating func write(_ channel: Int, _ value: UInt8) { pit.writeByte(UInt16(channel), value, at: now) }
        mutating func read(_ channel: Int) -> UInt8 { pit.readByte(UInt16(channel), at: now) }
        mutating func gate(_ level: Bool) { pit.setGate(2, level, at: now) }
        func out(_ channel: Int) -> Bool { pit.output(channel, at: now) }

        mutating func count(_ channel: Int) -> UInt16 {
            control(UInt8(channel) << 6)
            let low = UInt16(read(channel))
            return low | UInt16(read(channel)) << 8
        }

        /// OUT at the next `n` pulses, "_" for low.
        mutating func wave(_ channel: Int, _ n: Int) -> String {
            var wave = ""
            for _ in 0..<n {
                tick += 1
                wave += out(channel) ? "#" : "_"
            }
            return wave
        }

        mutating func ticks() -> Int {
            pit.advance(to: now)
            return pit.takeTicks()
        }
    }

    @Test func oneSecondHasExactly1193182Pulses() {
        for second in [1, 2, 3_600, 86_400 * 365 * 100] as [UInt64] {
            #expect(PIT8254.clock.ticks(at: .seconds(second)) == 1_193_182 * second)
            #expect(PIT8254.clock.ticks(at: Nanoseconds(second * 1_000_000_000 - 1)) == 1_193_182 * second - 1)
        }
        for tick in [1, 2, 1_193_181, 1_193_183, 9_999_999_999] as [UInt64] {
            let moment = PIT8254.clock.time(ofTick: tick)!
            #expect(PIT8254.clock.ticks(at: moment) == tick)
            #expect(PIT8254.clock.ticks(at: Nanoseconds(moment.rawValue - 1)) == tick - 1)
        }
        #expect(PIT8254.clock.time(ofTick: .max) == nil)
        #expect(PIT8254.clock.ticks(at: Nanoseconds(.max)) > 0)
    }

    @Test func mode0RaisesOutNPlus1PulsesAfterTheWrite() {
        var b = Bench()
        b.program(0, mode: 0, count: 4)
        #expect(!b.out(0))
        #expect(b.wave(0, 8) == "____####")
        #expect(b.ticks() == 1)
        #expect(b.count(0) == 0xfffd, "the counter wraps and goes on")
        b.tick += 1_000_000
        #expect(b.ticks() == 0, "one edge a count")
    }

    @Test func mode0GateHoldsTheCountAndAByteOfANewCountLowersOut() {
        var b = Bench()
        b.gate(true)
        b.program(2, mode: 0, count: 3)
        #expect(b.wave(2, 2) == "__")
        b.gate(false)
        #expect(b.count(2) == 2)
        #expect(b.wave(2, 10) == "__________")
        #expect(b.count(2) == 2)
        b.gate(true)
        #expect(b.wave(2, 3) == "_##")
        b.write(2, 2)
        #expect(!b.out(2), "the first byte lowers OUT without a clock")
        #expect(b.wave(2, 5) == "_____", "and stops counting")
        b.write(2, 0)
        #expect(b.wave(2, 4) == "__##")
    }

    @Test func mode1IsARetriggerableOneShot() {
        var b = Bench()
        b.program(2, mode: 1, count: 3)
        #expect(b.wave(2, 3) == "###", "nothing happens before a trigger")
        b.gate(true)
        #expect(b.wave(2, 6) == "___###")
        b.gate(false)
        b.gate(true)
        #expect(b.wave(2, 2) == "__")
        b.gate(false)
        b.gate(true)
        #expect(b.wave(2, 5) == "___##", "a trigger starts the pulse anew")
        b.write(2, 1)
        b.write(2, 0)
        #expect(b.wave(2, 3) == "###", "a new count waits for a trigger")
        b.gate(false)
        b.gate(true)
        #expect(b.wave(2, 3) == "_##")
    }

    @Test func mode2DividesByN() {
        var b = Bench()
        b.program(0, mode: 2, count: 3)
        #expect(b.out(0))
        #expect(b.wave(0, 9) == "##_##_##_")
        #expect(b.ticks() == 2)
        b.tick += 1
        #expect(b.ticks() == 1)
        b.program(0, mode: 6, count: 4)
        #expect(b.wave(0, 8) == "###_###_", "bit 3 of the mode doesn't matter")
    }

    @Test func mode2TakesANewCountAtTheEndOfTheCycle() {
        var b = Bench()
        b.program(0, mode: 2, count: 4)
        #expect(b.wave(0, 2) == "##")
        b.write(0, 2)
        b.write(0, 0)
        #expect(b.wave(0, 7) == "#_#_#_#")
    }

    @Test func mode2GateStopsAndRestarts() {
        var b = Bench()
        b.gate(true)
        b.program(2, mode: 2, count: 3)
        #expect(b.wave(2, 3) == "##_")
        b.gate(false)
        #expect(b.out(2), "OUT goes high at once")
        #expect(b.wave(2, 5) == "#####")
        b.gate(true)
        #expect(b.wave(2, 6) == "##_##_")
    }

    @Test func mode3IsSquareWithTheLongerHalfHigh() {
        var b = Bench()
        b.program(0, mode: 3, count: 4)
        #expect(b.wave(0, 8) == "##__##__")
        b.program(0, mode: 3, count: 5)
        #expect(b.wave(0, 11) == "###__###__#")
        b.program(0, mode: 7, count: 2)
        #expect(b.wave(0, 4) == "#_#_")
    }

    @Test func mode3CountsDownByTwo() {
        var b = Bench()
        b.program(0, mode: 3, count: 6)
        b.tick += 1
        var counts: [UInt16] = []
        for _ in 0..<7 {
            counts.append(b.count(0))
            b.tick += 1
        }
        #expect(counts == [6, 4, 2, 6, 4, 2, 6])
        b.program(0, mode: 3, count: 5)
        b.tick += 1
        counts = []
        for _ in 0..<6 {
            counts.append(b.count(0))
            b.tick += 1
        }
        #expect(counts == [4, 2, 0, 4, 2, 4])
    }

    @Test func mode4StrobesOncePerCount() {
        var b = Bench()
        b.program(0, mode: 4, count: 3)
        #expect(b.wave(0, 7) == "###_###")
        #expect(b.ticks() == 1)
        b.write(0, 2)
        b.write(0, 0)
        #expect(b.wave(0, 5) == "##_##")
        b.tick += 200_000
        #expect(b.ticks() == 1)
    }

    @Test func mode5StrobesAfterATrigger() {
        var b = Bench()
        b.program(2, mode: 5, count: 3)
        #expect(b.wave(2, 6) == "######")
        b.gate(true)
        #expect(b.wave(2, 6) == "###_##")
        b.gate(false)
        b.gate(true)
        #expect(b.wave(2, 2) == "##")
        b.gate(false)
        b.gate(true)
        #expect(b.wave(2, 5) == "###_#")
    }

    @Test func aCountOfZeroIs65536Or10000() {
        var b = Bench()
        b.program(0, mode: 0, count: 0)
        b.tick += 65_536
        #expect(!b.out(0))
        b.tick += 1
        #expect(b.out(0))
        b.program(0, mode: 0, count: 0, bcd: true)
        b.tick += 10_000
        #expect(!b.out(0))
        b.tick += 1
        #expect(b.out(0))
    }

    @Test func bcdCountsInDecimal() {
        var b = Bench()
        b.program(0, mode: 0, count: 0x1234, bcd: true)
        b.tick += 1
        #expect(b.count(0) == 0x1234)
        b.tick += 35
        #expect(b.count(0) == 0x1199)
        b.tick += 1_199
        #expect(b.out(0))
        b.tick += 1
        #expect(b.count(0) == 0x9999)
    }

    @Test func accessModesReadAndWriteOneByteOrBoth() {
        var b = Bench()
        b.control(0b00_01_010_0)
        b.write(0, 100)
        b.tick += 2
        #expect(b.read(0) == 99)
        #expect(b.read(0) == 99)
        b.control(0b00_10_010_0)
        b.write(0, 0x12)
        b.tick += 1
        #expect(b.read(0) == 0x12)
        b.control(0b00_11_010_0)
        b.write(0, 0x34)
        b.write(0, 0x12)
        b.tick += 1
        #expect(b.read(0) == 0x34)
        #expect(b.read(0) == 0x12)
        #expect(b.pit.readByte(3, at: b.now) == 0)
    }

    @Test func aLatchedCountStaysUntilItIsRead() {
        var b = Bench()
        b.program(0, mode: 2, count: 1_000)
        b.tick += 1
        b.control(0)
        b.tick += 10
        b.control(0)
        #expect(b.read(0) == 0xe8)
        b.tick += 10
        #expect(b.read(0) == 0x03)
        #expect(b.read(0) == UInt8(980 & 0xff))
        #expect(b.read(0) == UInt8(980 >> 8))
    }

    @Test func readBackLatchesStatusFirstAndThenTheCount() {
        var b = Bench()
        b.program(0, mode: 2, count: 0x1234)
        b.control(0b11_10_001_0)
        #expect(b.read(0) == 0b1111_0100, "OUT, NULL COUNT, both bytes, mode 2")
        b.tick += 1
        b.control(0b11_00_001_0)
        b.tick += 5
        #expect(b.read(0) == 0b1011_0100, "the count has been loaded")
        #expect(b.read(0) == 0x34)
        #expect(b.read(0) == 0x12)
        b.control(0b11_01_111_0)
        b.tick += 5
        #expect(b.read(0) == 0x2f, "count only")
        #expect(b.read(0) == 0x12)
        b.program(1, mode: 7, count: 9, bcd: true)
        b.control(0b11_10_010_0)
        #expect(b.read(1) == 0b1111_1111, "the mode as written")
    }

    @Test func nullCountIsSetUntilAWrittenCountIsLoaded() {
        var b = Bench()
        b.program(0, mode: 2, count: 10)
        b.tick += 1
        b.write(0, 5)
        b.write(0, 0)
        b.control(0b11_10_001_0)
        #expect(b.read(0) & 0x40 != 0)
        b.tick += 10
        b.control(0b11_10_001_0)
        #expect(b.read(0) & 0x40 == 0)
    }

    @Test func ticksOverLongSpansAreExact() {
        var b = Bench()
        b.program(0, mode: 2, count: 11_932)
        #expect(b.ticks() == 0)
        b.tick += 1 + 11_932 * 1_000_000_000
        #expect(b.ticks() == 1_000_000_000)
        b.tick += 11_931
        #expect(b.ticks() == 0)
        b.tick += 1
        #expect(b.ticks() == 1)

        var pit = PIT8254()
        pit.writeByte(3, 0b00_11_010_0, at: .seconds(0))
        pit.writeByte(0, 2, at: .seconds(0))
        pit.writeByte(0, 0, at: .seconds(0))
        pit.advance(to: .seconds(86_400 * 365))
        #expect(pit.takeTicks() == (1_193_182 * 86_400 * 365 - 1) / 2)
    }

    @Test func aCountOf1GivesNoEdgesInModes2And3() {
        for mode in [2, 3] as [UInt8] {
            var b = Bench()
            b.program(0, mode: mode, count: 1)
            #expect(b.wave(0, 5) == "#####")
            #expect(b.ticks() == 0)
            #expect(b.pit.nextDeadline(after: b.now) == nil)
            b.write(0, 4)
            b.write(0, 0)
            #expect(b.wave(0, 40).contains("_"))
        }
    }

    @Test func theDeadlineIsTheNextRisingEdge() {
        var random = SeededGenerator(seed: 7)
        for _ in 0..<300 {
            var b = Bench()
            b.program(0, mode: UInt8(random.next() % 6), count: UInt16(1 + random.next() % 40))
            b.tick += random.next() % 50
            _ = b.ticks()
            guard let deadline = b.pit.nextDeadline(after: b.now) else {
                b.tick += 1_000
                #expect(b.ticks() == 0)
                continue
            }
            #expect(deadline > b.now)
            b.pit.advance(to: Nanoseconds(deadline.rawValue - 1))
            #expect(b.pit.takeTicks() == 0)
            b.pit.advance(to: deadline)
            #expect(b.pit.takeTicks() == 1)
        }
    }

    /// The same counter moved pulse by pulse and in leaps: the leap's arithmetic has to agree with the small steps.
    @Test func aLeapEqualsManySteps() {
        var random = SeededGenerator(seed: 99)
        for round in 0..<400 {
            var leaper = PITCounter(mode: .rateGenerator, count: 5, gate: true)
            var stepper = leaper
            var tick: UInt64 = 0
            for _ in 0..<12 {
                let byte = UInt8(truncatingIfNeeded: random.next() % 12)
                let action = random.next() % 8
                var edges: (UInt64, UInt64) = (0, 0)
                for leaps in [true, false] {
                    var counter = leaps ? leaper : stepper
                    let made =
                        switch action {
                        case 0: counter.writeControl((byte & 3 == 0 ? 0x10 : 0x30) | (byte % 6) << 1 | byte >> 3 & 1)
                        case 1, 2: counter.setGate(action == 1)
                        case 3, 4: counter.write(byte)
                        case 5: counter.write(0)
                        default: UInt64(0)
                        }
                    if leaps { (leaper, edges.0) = (counter, made) } else { (stepper, edges.1) = (counter, made) }
                }
                let distance = random.next() % 60
                let expected = leaper.pulsesToRisingEdge
                var first: UInt64?
                for step in 0..<distance {
                    let rose = stepper.advance(to: tick &+ step &+ 1)
                    #expect(rose <= 1)
                    if rose > 0 && first == nil { first = step + 1 }
                    edges.1 &+= rose
                }
                tick &+= distance
                edges.0 &+= leaper.advance(to: tick)
                #expect(edges.0 == edges.1, "round \(round)")
                #expect(leaper == stepper, "round \(round)")
                if let first { #expect(expected == first, "round \(round)") }
                if let expected, expected <= distance { #expect(first == expected, "round \(round)") }
            }
        }
    }
}
