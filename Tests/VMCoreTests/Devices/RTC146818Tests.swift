import Testing
import VMCore

@Suite struct RTC146818Tests {
    struct Bench {
        var rtc: RTC146818
        var now = Nanoseconds(0)

        init(_ year: Int64, _ month: Int64, _ day: Int64, _ hour: Int64 = 0, _ minute: Int64 = 0, _ second: Int64 = 0) {
            let time = CalendarTime(
                year: year, month: month, day: day, secondOfDay: (hour * 60 + minute) * 60 + second)
            rtc = RTC146818(
                startSeconds: time.secondsSince1970, memoryBytes: 5 << 30, lowMemoryLimit: 0xc000_0000, cpuCount: 4)
        }

        init(rtc: RTC146818) { self.rtc = rtc }

        subscript(index: UInt8) -> UInt8 {
            mutating get {
                rtc.writeByte(0, index, at: now)
                return rtc.readByte(1, at: now)
            }
            set {
                rtc.writeByte(0, index, at: now)
                rtc.writeByte(1, newValue, at: now)
            }
        }

        mutating func wait(seconds: UInt64, nanoseconds: UInt64 = 0) {
            now = now + .seconds(seconds) + Nanoseconds(nanoseconds)
            rtc.advance(to: now)
        }

        /// Century, year, month, day, hours, minutes, seconds as the registers have them.
        mutating func time() -> [UInt8] { [0x32, 9, 8, 7, 4, 2, 0].map { self[$0] } }
    }

    static let a: UInt8 = 0x0a, b: UInt8 = 0x0b, c: UInt8 = 0x0c, d: UInt8 = 0x0d
    static let set: UInt8 = 0x80, pie: UInt8 = 0x40, aie: UInt8 = 0x20, uie: UInt8 = 0x10
    static let binary: UInt8 = 0x04, hours24: UInt8 = 0x02

    @Test func theCalendarKnowsLeapYears() {
        for (seconds, year, month, day, weekday) in [
            (0, 1970, 1, 1, 5), (951_782_400, 2000, 2, 29, 3), (951_868_800, 2000, 3, 1, 4),
            (1_709_164_800, 2024, 2, 29, 5), (4_107_542_400, 2100, 3, 1, 2), (-1, 1969, 12, 31, 4),
            (253_402_300_799, 9999, 12, 31, 6), (-62_167_219_200, 0, 1, 1, 7),
        ] as [(Int64, Int64, Int64, Int64, Int64)] {
            let time = CalendarTime(secondsSince1970: seconds)
            #expect([time.year, time.month, time.day, time.weekday] == [year, month, day, weekday])
            #expect(time.secondsSince1970 == seconds)
        }
        var random = SeededGenerator(seed: 3)
        for _ in 0..<2_000 {
            let seconds = Int64.random(in: CalendarTime.range, using: &random)
            let time = CalendarTime(secondsSince1970: seconds)
            #expect(time.secondsSince1970 == seconds)
            #expect((1...12).contains(time.month) && (1...31).contains(time.day))
            let next = CalendarTime(secondsSince1970: seconds + 86_400)
            #expect(next.weekday == time.weekday % 7 + 1)
        }
        #expect(CalendarTime(secondsSince1970: .max).year <= 9999)
        #expect(CalendarTime(secondsSince1970: .min).year >= 0)
    }

    @Test func timeIsBCDAnd24HoursAtFirst() {
        var r = Bench(2024, 2, 28, 23, 59, 58)
        #expect(r.time() == [0x20, 0x24, 0x02, 0x28, 0x23, 0x59, 0x58])
        #expect(r[6] == 4, "a Wednesday")
        r.wait(seconds: 2)
        #expect(r.time() == [0x20, 0x24, 0x02, 0x29, 0x00, 0x00, 0x00])
        r.wait(seconds: 86_400)
        #expect(r.time() == [0x20, 0x24, 0x03, 0x01, 0x00, 0x00, 0x00])
        #expect(r[6] == 6)
        #expect(r[0x37] == 0x20, "the PS/2's century byte")
        #expect(r.rtc.readByte(0, at: r.now) == 0xff)
    }

    @Test func timeIsTheSameHoweverOftenItIsAskedFor() {
        var often = Bench(1999, 12, 31, 23, 0, 0)
        var once = often
        for _ in 0..<7_200 {
            often.wait(seconds: 0, nanoseconds: 999_999_999)
        }
        once.wait(seconds: 7_199, nanoseconds: 999_992_800)
        #expect(often.time() == once.time())
        #expect(often.time() == [0x20, 0x00, 0x01, 0x01, 0x00, 0x59, 0x59])
    }

    @Test func binaryAnd12HourFormats() {
        var r = Bench(2023, 5, 6, 11, 30, 15)
        r[Self.b] = Self.set | Self.binary
        r[4] = 12
        r[2] = 59
        r[0] = 59
        r[7] = 31
        r[8] = 12
        r[9] = 99
        r[0x32] = 19
        r[Self.b] = Self.binary
        #expect(r.time() == [19, 99, 12, 31, 12, 59, 59])
        r.wait(seconds: 1)
        #expect(r.time() == [19, 99, 12, 31, 1, 0, 0], "12 a.m. is hour 0")
        r.wait(seconds: 11 * 3_600)
        #expect(r.time() == [19, 99, 12, 31, 0x80 | 12, 0, 0])
        r.wait(seconds: 3_600)
        #expect(r.time() == [19, 99, 12, 31, 0x80 | 1, 0, 0])
        r.wait(seconds: 11 * 3_600)
        #expect(r.time() == [20, 0, 1, 1, 12, 0, 0])
        r[Self.b] = 0
        r[4] = 0x81
        r.wait(seconds: 3_600)
        #expect(r[4] == 0x82, "in BCD, 2 p.m.")
    }

    @Test func setStopsUpdatesAndClearsUIE() {
        var r = Bench(2024, 1, 1)
        r[Self.b] = Self.set | Self.uie | Self.hours24
        #expect(r[Self.b] == Self.set | Self.hours24)
        r.wait(seconds: 10)
        #expect(r[0] == 0)
        #expect(r[Self.c] == 0x40, "periodic events only")
        r[0] = 0x30
        r[Self.b] = Self.hours24
        r.wait(seconds: 5)
        #expect(r[0] == 0x35)
    }

    @Test func timeWrittenWhileRunningCountsOn() {
        var r = Bench(2024, 12, 31, 23, 59, 50)
        r[9] = 0x30
        r.wait(seconds: 10)
        #expect(r.time() == [0x20, 0x31, 0x01, 0x01, 0x00, 0x00, 0x00])
    }

    @Test func dividerResetHoldsTimeAndTheFirstUpdateComesHalfASecondAfterIt() {
        var r = Bench(2024, 1, 1)
        r[Self.a] = 0x70
        r.wait(seconds: 30)
        #expect(r[0] == 0)
        #expect(r[Self.a] == 0x70)
        r[Self.a] = 0x26
        r.wait(seconds: 0, nanoseconds: 499_999_999)
        #expect(r[0] == 0)
        r.wait(seconds: 0, nanoseconds: 1)
        #expect(r[0] == 1)
        r.wait(seconds: 1)
        #expect(r[0] == 2)
    }

    @Test func uipShowsBeforeAnUpdate() {
        var r = Bench(2024, 1, 1)
        #expect(r[Self.a] == 0x26)
        r.wait(seconds: 0, nanoseconds: 1_000_000_000 - 2_228_001)
        #expect(r[Self.a] == 0x26)
        r.wait(seconds: 0, nanoseconds: 1)
        #expect(r[Self.a] == 0xa6)
        r[Self.b] = Self.set | Self.hours24
        #expect(r[Self.a] == 0x26, "not while SET")
        r[Self.b] = Self.hours24
        r.wait(seconds: 0, nanoseconds: 2_228_000)
        #expect(r[Self.a] == 0x26)
        #expect(r[0] == 1)
        r[Self.a] = 0xa6
        #expect(r[Self.a] == 0x26, "read-only")
    }

    @Test func updateEndedInterrupt() {
        var r = Bench(2024, 1, 1)
        #expect(r.rtc.nextDeadline(after: r.now) == nil)
        r[Self.b] = Self.uie | Self.hours24
        #expect(r.rtc.nextDeadline(after: r.now) == .seconds(1))
        #expect(!r.rtc.irq)
        r.wait(seconds: 1)
        #expect(r.rtc.irq)
        #expect(r.rtc.nextDeadline(after: r.now) == nil, "it stays until read")
        #expect(r[Self.c] & 0xb0 == 0x90)
        #expect(!r.rtc.irq)
        #expect(r[Self.c] == 0)
        #expect(r.rtc.nextDeadline(after: r.now) == .seconds(2))
    }

    @Test func periodicInterruptHasTheRateOfRegisterA() {
        for (rate, hertz) in [(1, 256), (2, 128), (3, 8_192), (6, 1_024), (15, 2)] as [(UInt8, UInt64)] {
            var r = Bench(2024, 1, 1)
            r[Self.a] = 0x20 | rate
            r[Self.b] = Self.pie | Self.hours24
            var interrupts: UInt64 = 0
            while let deadline = r.rtc.nextDeadline(after: r.now), deadline <= .seconds(1) {
                r.rtc.advance(to: Nanoseconds(deadline.rawValue - 1))
                #expect(!r.rtc.irq)
                r.now = deadline
                r.rtc.advance(to: deadline)
                #expect(r.rtc.irq)
                #expect(r[Self.c] & 0xc0 == 0xc0)
                interrupts += 1
            }
            #expect(interrupts == hertz)
        }
        var r = Bench(2024, 1, 1)
        r[Self.a] = 0x20
        r[Self.b] = Self.pie | Self.hours24
        #expect(r.rtc.nextDeadline(after: r.now) == nil, "rate 0 is off")
    }

    @Test func enablingAnInterruptWhoseFlagIsSetRaisesIt() {
        var r = Bench(2024, 1, 1)
        r.wait(seconds: 1)
        #expect(!r.rtc.irq)
        r[Self.b] = Self.pie | Self.hours24
        #expect(r.rtc.irq)
    }

    @Test func alarmInterrupts() {
        func secondsToAlarm(
            _ alarm: [UInt8], _ hour: Int64, _ minute: Int64, _ second: Int64, b: UInt8 = 2
        ) -> UInt64? {
            var r = Bench(2024, 1, 1, hour, minute, second)
            if b & 2 == 0 {
                r[Self.b] = b | Self.set
                r[4] = 0x85
                r[Self.b] = b
            }
            for (index, value) in zip([5, 3, 1] as [UInt8], alarm) { r[index] = value }
            r[Self.b] = Self.aie | b
            guard let deadline = r.rtc.nextDeadline(after: r.now) else {
                r.wait(seconds: 200_000)
                #expect(!r.rtc.irq)
                return nil
            }
            r.rtc.advance(to: Nanoseconds(deadline.rawValue - 1))
            #expect(!r.rtc.irq)
            r.now = deadline
            r.rtc.advance(to: deadline)
            #expect(r.rtc.irq)
            #expect(r[Self.c] & 0xb0 == 0xb0)
            return deadline.rawValue / 1_000_000_000
        }
        #expect(secondsToAlarm([0x10, 0x20, 0x30], 10, 20, 25) == 5)
        #expect(secondsToAlarm([0x10, 0x20, 0x30], 10, 20, 30) == 86_400)
        #expect(secondsToAlarm([0x10, 0x20, 0x30], 10, 20, 31) == 86_399)
        #expect(secondsToAlarm([0xff, 0xff, 0xff], 10, 20, 31) == 1)
        #expect(secondsToAlarm([0xff, 0xff, 0x00], 10, 59, 59) == 1)
        #expect(secondsToAlarm([0xff, 0xff, 0x05], 10, 59, 6) == 59)
        #expect(secondsToAlarm([0xff, 0x05, 0xc0], 10, 5, 59) == 3_541)
        #expect(secondsToAlarm([0x00, 0xff, 0xff], 23, 59, 58) == 2)
        #expect(secondsToAlarm([0x22, 0xff, 0x59], 22, 59, 59) == 82_860)
        #expect(secondsToAlarm([0x24, 0x00, 0x00], 0, 0, 0) == nil, "no such hour")
        #expect(secondsToAlarm([0x85, 0x00, 0x10], 0, 0, 0, b: 0) == 10, "5 p.m.")
    }

    @Test func theAlarmAgreesWithLookingAtEverySecond() {
        var random = SeededGenerator(seed: 5)
        for _ in 0..<60 {
            var r = Bench(2024, 1, 1, Int64(random.next() % 24), Int64(random.next() % 60), Int64(random.next() % 60))
            r[Self.b] = Self.set | Self.binary | Self.hours24
            for (index, limit) in [(5, 24), (3, 60), (1, 60)] as [(UInt8, UInt64)] {
                r[index] = random.next() % 3 == 0 ? 0xc0 : UInt8(random.next() % limit)
            }
            r[Self.b] = Self.binary | Self.hours24
            let alarm = (r[5], r[3], r[1])
            r[Self.b] = Self.aie | Self.binary | Self.hours24
            let deadline = r.rtc.nextDeadline(after: r.now)
            var second: UInt64 = 0
            var matches = false
            while !matches && second < 86_400 {
                second += 1
                r.wait(seconds: 1)
                let time = (r[4], r[2], r[0])
                matches = (alarm.0 > 0xbf || alarm.0 == time.0) && (alarm.1 > 0xbf || alarm.1 == time.1)
                    && (alarm.2 > 0xbf || alarm.2 == time.2)
                if second > 300 && !matches {
                    // Long waits are covered by the deadline alone.
                    break
                }
            }
            if matches { #expect(deadline == .seconds(second)) } else { #expect(deadline! > .seconds(second)) }
            #expect(r.rtc.irq == matches)
        }
    }

    @Test func aLateAdvanceStillSeesTheAlarm() {
        var r = Bench(2024, 1, 1)
        (r[5], r[3], r[1]) = (0x12, 0x00, 0x00)
        r[Self.b] = Self.aie | Self.hours24
        r.wait(seconds: 11 * 3_600)
        #expect(!r.rtc.irq)
        r.wait(seconds: 40 * 3_600)
        #expect(r.rtc.irq)
    }

    @Test func registersCAndDAreReadOnlyAndDIsValid() {
        var r = Bench(2024, 1, 1)
        r[Self.c] = 0xff
        r[Self.d] = 0
        #expect(r[Self.c] == 0)
        #expect(r[Self.d] == 0x80)
    }

    @Test func cmosMemoryTellsTheMachine() {
        var r = Bench(2024, 1, 1)
        func word(_ index: UInt8) -> Int { Int(r[index]) | Int(r[index + 1]) << 8 }
        #expect(word(0x15) == 640)
        #expect(word(0x17) == 0xffff)
        #expect(word(0x30) == 0xffff)
        #expect(word(0x34) == (0xc000_0000 - (16 << 20)) >> 16)
        #expect(word(0x5b) | Int(r[0x5d]) << 16 == (2 << 30) >> 16)
        #expect(r[0x5f] == 3)
        #expect((r[0x0f], r[0x10], r[0x12], r[0x14]) == (0, 0, 0, 2))
        let sum = (UInt8(0x10)...0x2d).reduce(0) { $0 + Int(r[$1]) }
        #expect(Int(r[0x2e]) << 8 | Int(r[0x2f]) == sum)
        r[0x0f] = 0x0a
        r[0x7f] = 0x77
        #expect(r[0x0f] == 0x0a)
        #expect(r[0x7f] == 0x77)

        func memory(_ bytes: UInt64, below limit: UInt64, cpuCount: Int) -> Bench {
            Bench(rtc: RTC146818(startSeconds: 0, memoryBytes: bytes, lowMemoryLimit: limit, cpuCount: cpuCount))
        }
        var small = memory(8 << 20, below: 3 << 30, cpuCount: 1)
        #expect(Int(small[0x17]) | Int(small[0x18]) << 8 == 7 * 1_024)
        #expect(small[0x34] == 0)
        #expect(small[0x35] == 0)
        var none = memory(0, below: 0, cpuCount: -5)
        #expect(none[0x15] == 0)
        var huge = memory(.max, below: .max, cpuCount: .max)
        #expect(huge[0x5f] == 0xff)
    }

    @Test func bit7OfTheIndexMasksNMI() {
        var r = Bench(2024, 1, 1)
        r.rtc.writeByte(0, 0x80 | 0x14, at: r.now)
        #expect(r.rtc.isNMIDisabled)
        #expect(r.rtc.readByte(1, at: r.now) == 2)
        r.rtc.writeByte(0, 0x14, at: r.now)
        #expect(!r.rtc.isNMIDisabled)
    }

    @Test func resetKeepsTimeAndClearsInterrupts() {
        var r = Bench(2024, 1, 1)
        r[Self.b] = Self.pie | Self.uie | Self.hours24
        r.wait(seconds: 3)
        r.rtc.reset(at: r.now)
        #expect(!r.rtc.irq)
        #expect(r[Self.b] == Self.hours24)
        #expect(r[0] == 3)
    }

    @Test func impossibleTimesCountOnFromTheNearestPossible() {
        var r = Bench(2024, 1, 1)
        for index in [0, 2, 4, 7, 8, 9, 0x32] as [UInt8] { r[index] = 0xff }
        r[6] = 0
        #expect(r[0] == 0xff, "a register keeps what is written until the next update")
        r.wait(seconds: 1)
        #expect(r.time() == [0x00, 0x00, 0x01, 0x01, 0x00, 0x00, 0x00])
    }
}
