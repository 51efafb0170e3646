import Foundation
import Testing
import VMCore

@Suite struct ChipsetTests {
    let now = Nanoseconds(0)
    var chipset = Chipset(ChipsetConfiguration(memoryBytes: 1 << 30, wallClockStart: 1_704_067_200))

    static func withTestDevice() -> Chipset {
        Chipset(ChipsetConfiguration(memoryBytes: 1 << 30, wallClockStart: 1_704_067_200, testDevice: true))
    }

    mutating func inb(_ port: UInt16, at moment: Nanoseconds = Nanoseconds(0)) -> UInt8 {
        UInt8(chipset.readPort(port, size: 1, at: moment))
    }

    mutating func outb(_ port: UInt16, _ value: UInt8, at moment: Nanoseconds = Nanoseconds(0)) {
        chipset.writePort(port, size: 1, value: UInt32(value), at: moment)
    }

    @Test mutating func unclaimedPortsReadAllOnes() {
        for port in [0x00, 0x44, 0x62, 0x72, 0xe0, 0x2f8, 0x512, 0x60c, 0x2000, 0xfffe] as [UInt16] {
            #expect(chipset.readPort(port, size: 1, at: now) == 0xff)
            #expect(chipset.readPort(port, size: 2, at: now) == 0xffff)
            outb(port, 0)
        }
        #expect(chipset.readPort(0xcf8, size: 4, at: now) == 0xffff_ffff)
        #expect(chipset.request == nil)
    }

    @Test mutating func wideAccessesAreSplitIntoBytes() {
        chipset.writePort(0x70, size: 2, value: 0x5a0f, at: now)
        #expect(inb(0x71) == 0x5a)
        #expect(chipset.readPort(0x70, size: 2, at: now) == 0x5aff)
        chipset.writePort(0x3ff, size: 4, value: 0xdddd_dd77, at: now)
        #expect(inb(0x3ff) == 0x77)
        #expect(chipset.readPort(0xffff, size: 4, at: now) == 0xffff_ffff)
        #expect(chipset.readPort(0x608, size: 4, at: .seconds(1)) == 3_579_545)
    }

    @Test mutating func sizesThatDontExistTrapNothing() {
        for size in [Int.min, -1, 0, 3, 5, 8, Int.max] {
            for port in [0x40, 0x70, 0xe9, 0x3f8, 0x510, 0x608] as [UInt16] {
                _ = chipset.readPort(port, size: size, at: now)
                chipset.writePort(port, size: size, value: .max, at: now)
            }
            _ = chipset.readMMIO(0xff00_0000, size: size, at: now)
        }
        chipset.writePort(0xf4, size: 0, value: 1, at: now)
        #expect(chipset.request == nil)
    }

    @Test mutating func serialOutputAndInputGoThroughCOM1() {
        #expect(!chipset.hasOutput)
        outb(0x3f8, 0x41)
        #expect(chipset.hasOutput)
        #expect(chipset.takeSerialOutput() == [0x41])
        outb(0x3fc, 0x08)
        outb(0x3f9, 0x01)
        #expect(chipset.canReceiveSerial)
        #expect(chipset.receiveSerial(0x42, at: now) == true)
        #expect(chipset.isaLines == 1 << 4)
        #expect(inb(0x3f8) == 0x42)
        #expect(chipset.isaLines == 0)
    }

    @Test mutating func theDebugConsoleIsThereUnlessTheTestDeviceIs() {
        #expect(inb(0xe9) == 0xe9)
        for byte in "hi".utf8 { outb(0xe9, byte) }
        #expect(chipset.hasOutput)
        #expect(chipset.takeDebugOutput() == Array("hi".utf8))
        #expect(!chipset.hasOutput)
        chipset = Self.withTestDevice()
        outb(0xe9, 0x12)
        #expect(inb(0xe1) == 0x12)
        #expect(!chipset.hasOutput)
    }

    @Test mutating func aWriteToTheExitPortEndsTheRun() {
        for (size, value) in [(1, 0x78), (2, 0x5678), (4, 0x1234_5678)] as [(Int, UInt32)] {
            chipset.writePort(0xf4, size: size, value: 0x1234_5678, at: now)
            #expect(chipset.request == .debugExit(value))
            #expect(chipset.takeRequest() == .debugExit(value))
            #expect(chipset.takeRequest() == nil)
        }
        #expect(inb(0xf4) == 0)
    }

    @Test mutating func theFirstRequestCounts() {
        outb(0x64, 0xfe)
        #expect(chipset.request == .reset)
        outb(0xf4, 1)
        #expect(chipset.takeRequest() == .reset)
        outb(0x92, 1)
        #expect(chipset.takeRequest() == .reset)
        outb(0xcf9, 6)
        #expect(chipset.takeRequest() == .reset)
        chipset.writePort(0x604, size: 2, value: 0x2000 | UInt32(ACPIPowerManagement.sleepTypeS5) << 10, at: now)
        #expect(chipset.takeRequest() == .powerOff)
    }

    @Test mutating func pciConfigurationAddressesAreNoReset() {
        chipset.writePort(0xcf8, size: 4, value: 0x8000_ff00, at: now)
        chipset.writePort(0xcf8, size: 2, value: 0xff00, at: now)
        chipset.writePort(0xcf9, size: 2, value: 0xff, at: now)
        #expect(chipset.request == nil)
    }

    @Test mutating func port61GatesCounter2AndShowsItsOutput() {
        outb(0x61, 0x00)
        outb(0x43, 0b10_11_000_0)
        outb(0x42, 100)
        outb(0x42, 0)
        #expect(inb(0x61) & 0x20 == 0)
        let later = Nanoseconds.milliseconds(1)
        #expect(inb(0x61, at: later) & 0x20 == 0, "the gate is low")
        outb(0x61, 0x01, at: later)
        let expired = PIT8254.clock.time(ofTick: PIT8254.clock.ticks(at: later) + 100)!
        #expect(inb(0x61, at: Nanoseconds(expired.rawValue - 1)) & 0x21 == 0x01)
        #expect(inb(0x61, at: expired) & 0x21 == 0x21)
    }

    @Test mutating func timerTicksAreCountedAndDue() {
        outb(0x43, 0b00_11_010_0)
        outb(0x40, 0x9c)
        outb(0x40, 0x2e)
        let deadline = PIT8254.clock.time(ofTick: 1 + 11_932)!
        #expect(chipset.nextDeadline(after: now) == deadline)
        chipset.advance(to: deadline)
        #expect(chipset.takeTimerTicks() == 1)
        chipset.advance(to: .seconds(100))
        #expect(chipset.takeTimerTicks() == (119_318_200 - 1) / 11_932 - 1)
    }

    @Test mutating func theClockRaisesIRQ8AndTheKeyboardIRQ1AndACPIIRQ9() {
        chipset.writePort(0x70, size: 2, value: 0x120b, at: now)
        chipset.advance(to: .seconds(1))
        #expect(chipset.isaLines == 1 << 8)
        outb(0x70, 0x0c, at: .seconds(1))
        #expect(inb(0x71, at: .seconds(1)) & 0x90 == 0x90)
        outb(0x60, 0xff, at: .seconds(1))
        #expect(chipset.isaLines == 1 << 1)
        _ = inb(0x60, at: .seconds(1))
        chipset.writePort(0x602, size: 2, value: 1, at: .seconds(1))
        chipset.advance(to: .seconds(601))
        #expect(chipset.isaLines & ~(1 << 8) == 1 << 9)
    }

    @Test mutating func theClockStartsAtTheConfiguredTimeAndMasksNMI() {
        outb(0x70, 0x80 | 0x09)
        #expect(inb(0x71) == 0x24)
        #expect(chipset.isNMIDisabled)
    }

    @Test mutating func firmwareConfigurationIsAtPort510() {
        chipset.writePort(0x510, size: 2, value: 0, at: now)
        #expect((0..<4).map { _ in inb(0x511) } == Array("QEMU".utf8))
        chipset.writePort(0x510, size: 2, value: 3, at: now)
        #expect((0..<5).map { _ in inb(0x511) } == [0, 0, 0, 0x40, 0])
        chipset.writePort(0x510, size: 2, value: 0x19, at: now)
        #expect((0..<4).map { _ in inb(0x511) } == [0, 0, 0, 0])
    }

    @Test mutating func theTestDeviceOwnsItsWindowAndLines() {
        #expect(!chipset.ownsMMIO(0xff00_0000))
        #expect(chipset.readMMIO(0xff00_0000, size: 4, at: now) == 0xffff_ffff)
        chipset = Self.withTestDevice()
        #expect(chipset.ownsMMIO(0xff00_0000) && chipset.ownsMMIO(0xff00_ffff))
        #expect(!chipset.ownsMMIO(0xfeff_ffff) && !chipset.ownsMMIO(0xff01_0000))
        chipset.writeMMIO(0xff00_0010, size: 8, value: 0x1122_3344_5566_7788, at: now)
        #expect(chipset.readMMIO(0xff00_0014, size: 2, at: now) == 0x3344)
        #expect(chipset.takeTestLineChanges().count == 0)
        outb(0x2005, 1)
        let changes = chipset.takeTestLineChanges()
        #expect(changes.count == 1 && changes[0] == (gsi: 5, level: true))
        #expect(chipset.takeTestLineChanges().count == 0)
    }

    @Test mutating func resetKeepsTimeContentsAndOutput() {
        outb(0x3f8, 0x41)
        outb(0x3ff, 0x55)
        outb(0x64, 0xfe)
        chipset.writePort(0x70, size: 2, value: 0x770f, at: now)
        chipset.reset(at: .seconds(2))
        #expect(chipset.request == nil)
        #expect(chipset.takeSerialOutput() == [0x41])
        #expect(inb(0x3ff, at: .seconds(2)) == 0)
        outb(0x70, 0x0f, at: .seconds(2))
        #expect(inb(0x71, at: .seconds(2)) == 0x77)
        outb(0x70, 0x00, at: .seconds(2))
        #expect(inb(0x71, at: .seconds(2)) == 0x02)
        #expect(inb(0x511, at: .seconds(2)) == UInt8(ascii: "Q"))
    }

    @Test func firmwareContentsCanStayOutOfACheckpoint() throws {
        var configuration = ChipsetConfiguration(memoryBytes: 1 << 30, wallClockStart: 0)
        configuration.kernel = [UInt8](repeating: 7, count: 100_000)
        var chipset = Chipset(configuration)
        chipset.writePort(0x510, size: 2, value: 0x11, at: now)
        _ = chipset.readPort(0x511, size: 1, at: now)
        var bare = chipset
        bare.firmwareContents = FirmwareContents()
        let data = try JSONEncoder().encode(bare)
        #expect(data.count < 10_000)
        var decoded = try JSONDecoder().decode(Chipset.self, from: data)
        decoded.firmwareContents = configuration.firmwareContents
        #expect(decoded == chipset)
        #expect(decoded.readPort(0x511, size: 1, at: now) == 7)
    }
}
