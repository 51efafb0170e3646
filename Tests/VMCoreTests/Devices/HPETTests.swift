import Foundation
import Testing
import VMCore

@Suite struct HPETTests {
    var hpet = HPET()
    var now = Nanoseconds(0)

    /// Offsets of the specification's registers.
    private enum Register {
        static let capabilities: UInt64 = 0x00, configuration: UInt64 = 0x10, status: UInt64 = 0x20, counter: UInt64 = 0xf0
        static func timer(_ index: UInt64) -> UInt64 { 0x100 + 0x20 * index }
        static func comparator(_ index: UInt64) -> UInt64 { timer(index) + 8 }
    }

    /// Bits of a timer's configuration.
    private enum Bit {
        static let level: UInt64 = 1 << 1, enable: UInt64 = 1 << 2, periodic: UInt64 = 1 << 3
        static let setsValue: UInt64 = 1 << 6, in32Bits: UInt64 = 1 << 8
    }

    mutating func read(_ offset: UInt64, size: Int = 8) -> UInt64 { hpet.readMMIO(offset: offset, size: size, at: now) }

    mutating func write(_ offset: UInt64, _ value: UInt64, size: Int = 8) {
        hpet.writeMMIO(offset: offset, size: size, value: value, at: now)
    }

    /// Goes on by so many counts, of 100 ns each.
    mutating func count(_ counts: UInt64) {
        now = now + Nanoseconds(100 * counts)
        hpet.advance(to: now)
    }

    mutating func start(legacy: Bool = false) { write(Register.configuration, legacy ? 3 : 1) }

    /// How many counts away the next deadline is.
    func countsToDeadline() -> UInt64? { hpet.nextDeadline(after: now).map { ($0 - now).rawValue / 100 } }

    @Test mutating func capabilitiesTellOfThreeTimersAndTheSlowestClockAllowed() {
        let capabilities = read(Register.capabilities)
        #expect(capabilities >> 32 == 100_000_000, "femtoseconds a count: the specification's limit")
        #expect(capabilities >> 8 & 0x1f == 2, "the number of the last timer")
        #expect(capabilities & (1 << 13) != 0 && capabilities & (1 << 15) != 0)
        #expect(UInt32(truncatingIfNeeded: capabilities) == HPET.identification)
        for timer in 0..<3 as Range<UInt64> {
            #expect(read(Register.timer(timer)) & 0x30 == 0x30, "periodic and 64 bits")
            #expect(read(Register.timer(timer)) & (1 << 15) == 0, "no messages")
        }
        write(Register.capabilities, 0)
        #expect(read(Register.capabilities) == capabilities)
        #expect(read(0x180) == 0 && read(0x3f8) == 0)
    }

    @Test mutating func counterRunsWhileEnabledAndCanBeSet() {
        count(1000)
        #expect(read(Register.counter) == 0)
        start()
        count(1000)
        #expect(read(Register.counter) == 1000)
        #expect(read(Register.counter, size: 4) == 1000)
        write(Register.configuration, 0)
        count(50)
        #expect(read(Register.counter) == 1000)
        write(Register.counter, 0xffff_fff0)
        start()
        count(0x20)
        #expect(read(Register.counter) == 0x1_0000_0010)
        #expect(read(Register.counter + 4, size: 4) == 1)
    }

    @Test mutating func oneShotMakesOneEdgeAtItsCount() {
        start()
        write(Register.timer(2), Bit.enable | 16 << 9)
        write(Register.comparator(2), 500)
        #expect(hpet.pin(2) == 16)
        #expect(countsToDeadline() == 500)
        count(499)
        #expect(!hpet.hasEdges)
        count(1)
        #expect(hpet.takeEdges() == 0b100)
        #expect(hpet.output(2))
        count(1_000_000)
        #expect(hpet.takeEdges() == 0)
        #expect(read(Register.status) == 0, "an edge leaves no status")
    }

    @Test mutating func periodicTimerTakesItsFirstMatchAndItsPeriodInTwoWrites() {
        start()
        write(Register.timer(0), Bit.enable | Bit.periodic | Bit.setsValue | Bit.in32Bits)
        write(Register.comparator(0), 300, size: 4)
        #expect(read(Register.timer(0)) & Bit.setsValue == 0)
        write(Register.comparator(0), 100, size: 4)
        var edges: [UInt64] = []
        for _ in 0..<5 {
            count(countsToDeadline() ?? 0)
            if hpet.takeEdges() == 1 { edges.append(read(Register.counter)) }
        }
        #expect(edges == [300, 400, 500, 600, 700])
        // Found late, many matches are one edge, and the phase stays.
        count(100_050)
        #expect(hpet.takeEdges() == 1)
        #expect(countsToDeadline() == 50)
        #expect(read(Register.comparator(0)) == 100_800)
    }

    @Test mutating func comparatorMatchesAtOnceOrAfterTheCounterWraps() {
        start()
        count(1000)
        write(Register.timer(0), Bit.enable | Bit.in32Bits)
        write(Register.comparator(0), 1000)
        #expect(hpet.takeEdges() == 1)
        write(Register.comparator(0), 999)
        #expect(hpet.takeEdges() == 0)
        #expect(countsToDeadline() == 0xffff_ffff)
        count(0xffff_ffff)
        #expect(hpet.takeEdges() == 1)
        write(Register.timer(0), Bit.enable)
        write(Register.comparator(0), 5)
        #expect(countsToDeadline() == nil, "64 bits wrap after the end of time")
    }

    @Test mutating func levelStaysUntilItsStatusIsCleared() {
        start()
        write(Register.timer(1), Bit.enable | Bit.level | Bit.periodic | Bit.setsValue | 17 << 9)
        write(Register.comparator(1), 10)
        write(Register.comparator(1), 10)
        count(10)
        #expect(hpet.output(1) && !hpet.hasEdges)
        #expect(read(Register.status) == 0b010)
        #expect(countsToDeadline() == nil, "nothing changes while it waits to be served")
        count(10)
        write(Register.status, 0b101)
        #expect(hpet.output(1))
        write(Register.status, 0b010)
        #expect(!hpet.output(1))
        #expect(countsToDeadline() == 10)
    }

    @Test mutating func timerWithoutInterruptShowsItsStatusAlone() {
        start()
        write(Register.timer(0), Bit.level)
        write(Register.comparator(0), 10)
        write(Register.comparator(1), 10)
        #expect(countsToDeadline() == nil)
        count(10)
        #expect(!hpet.output(0) && !hpet.output(1) && !hpet.hasEdges)
        #expect(read(Register.status) == 0b001)
    }

    @Test mutating func legacyReplacementTakesTwoTimersOffTheirPins() {
        write(Register.timer(0), Bit.enable | 20 << 9)
        write(Register.timer(1), Bit.enable | 21 << 9)
        write(Register.timer(2), Bit.enable | 22 << 9)
        #expect((0..<3).map { hpet.pin($0) } == [20, 21, 22])
        start(legacy: true)
        #expect(hpet.replacesLegacyTimers)
        #expect((0..<3).map { hpet.pin($0) } == [nil, nil, 22])
        write(Register.timer(2), Bit.enable | 3 << 9)
        #expect(hpet.pin(2) == nil, "a pin that belongs to another device")
    }

    @Test mutating func partialWritesLeaveTheOtherBytes() {
        write(Register.comparator(0), 0x1122_3344_5566_7788)
        write(Register.comparator(0) + 4, 0xaabb_ccdd, size: 4)
        #expect(read(Register.comparator(0)) == 0xaabb_ccdd_5566_7788)
        write(Register.comparator(0) + 1, 0xee, size: 1)
        #expect(read(Register.comparator(0)) == 0xaabb_ccdd_5566_ee88)
        write(Register.timer(0), Bit.in32Bits)
        #expect(read(Register.comparator(0)) == 0x5566_ee88)
    }
}

/// The event timer among the other devices.
@Suite struct HPETWiringTests {
    static let base = HPET.address.rawValue

    static func platform(hpet: Bool = true) -> Platform {
        var configuration = ChipsetConfiguration(memoryBytes: 1 << 30, wallClockStart: 0)
        configuration.hpet = hpet
        return Platform(configuration)
    }

    private func write(_ platform: inout Platform, _ offset: UInt64, _ value: UInt64, at now: Nanoseconds) {
        platform.writeMMIO(.init(Self.base + offset), size: 8, value: value, at: now)
    }

    /// Unmasks a pin of the I/O APIC and switches the local APIC on.
    private func unmask(_ platform: inout Platform, pin: UInt64, vector: UInt64, level: Bool = false) {
        let now = Nanoseconds(0)
        platform.writeMMIO(.init(0xfee0_00f0), size: 4, value: 0x1ff, at: now)
        platform.writeMMIO(.init(0xfec0_0000), size: 4, value: 0x10 + 2 * pin, at: now)
        platform.writeMMIO(.init(0xfec0_0010), size: 4, value: vector | (level ? 1 << 15 : 0), at: now)
    }

    @Test func timerOnAPinInterruptsThroughTheIOAPIC() {
        var platform = Self.platform()
        unmask(&platform, pin: 18, vector: 0x51)
        write(&platform, 0x140, 1 << 2 | 18 << 9, at: .init(0))
        write(&platform, 0x148, 1000, at: .init(0))
        write(&platform, 0x10, 1, at: .init(0))
        platform.receive(.advance(.microseconds(99)))
        #expect(platform.acknowledgeInterrupt(taskPriority: 0) == nil)
        platform.receive(.advance(.microseconds(100)))
        #expect(platform.acknowledgeInterrupt(taskPriority: 0) == 0x51)
    }

    @Test func levelOnAPinAsksAgainUntilItIsServed() {
        var platform = Self.platform()
        unmask(&platform, pin: 19, vector: 0x52, level: true)
        write(&platform, 0x100, 1 << 1 | 1 << 2 | 19 << 9, at: .init(0))
        write(&platform, 0x108, 10, at: .init(0))
        write(&platform, 0x10, 1, at: .init(0))
        platform.receive(.advance(.microseconds(1)))
        for _ in 0..<2 {
            #expect(platform.acknowledgeInterrupt(taskPriority: 0) == 0x52)
            platform.writeMMIO(.init(0xfee0_00b0), size: 4, value: 0, at: platform.time)
        }
        write(&platform, 0x20, 1, at: platform.time)
        #expect(platform.acknowledgeInterrupt(taskPriority: 0) == 0x52, "it asked once more before it was served")
        platform.writeMMIO(.init(0xfee0_00b0), size: 4, value: 0, at: platform.time)
        #expect(platform.acknowledgeInterrupt(taskPriority: 0) == nil)
    }

    @Test func legacyReplacementSilencesTimerAndClock() {
        var platform = Self.platform()
        unmask(&platform, pin: 2, vector: 0x30)
        // The interval timer at 1 kHz, which would interrupt ten times.
        platform.writePort(0x43, size: 1, value: 0x34, at: .init(0))
        platform.writePort(0x40, size: 1, value: 0xa9, at: .init(0))
        platform.writePort(0x40, size: 1, value: 0x04, at: .init(0))
        write(&platform, 0x100, 1 << 2, at: .init(0))
        write(&platform, 0x108, 50_000, at: .init(0))
        write(&platform, 0x10, 3, at: .init(0))
        var taken: [UInt64] = []
        for millisecond in 1...10 as ClosedRange<UInt64> {
            platform.receive(.advance(.milliseconds(millisecond)))
            if platform.acknowledgeInterrupt(taskPriority: 0) == 0x30 {
                taken.append(millisecond)
                platform.writeMMIO(.init(0xfee0_00b0), size: 4, value: 0, at: platform.time)
            }
        }
        #expect(taken == [5], "the event timer's one shot alone")
        write(&platform, 0x10, 1, at: platform.time)
        platform.receive(.advance(.milliseconds(12)))
        #expect(platform.acknowledgeInterrupt(taskPriority: 0) == 0x30, "the interval timer is back")
    }

    @Test func itsRegistersDependOnTime() {
        let address = Self.base + 0xf0
        #expect(Platform.dependsOnTime(EventIdentity(kind: .mmioRead, size: 4, address: address)))
        #expect(!Platform.dependsOnTime(EventIdentity(kind: .mmioRead, size: 4, address: Self.base + 0x400)))
    }

    /// Recordings of versions without it restore to machines without it.
    @Test func machineWithoutItKeepsNoTraceOfIt() throws {
        var bare = Self.platform(hpet: false)
        #expect(bare.readMMIO(HPET.address, size: 4, at: .init(0)) & 0xffff_ffff == 0xffff_ffff)
        let state = try #require(JSONSerialization.jsonObject(with: JSONEncoder().encode(bare)) as? [String: Any])
        #expect((state["chipset"] as? [String: Any])?["hpet"] == nil)
        var old = state
        old["hpetPins"] = nil
        let restored = try JSONDecoder().decode(Platform.self, from: JSONSerialization.data(withJSONObject: old))
        #expect(restored == bare)
    }
}
