import Testing
import VMCore

@Suite struct I8042Tests {
    var keyboard = I8042()
    let now = Nanoseconds(0)

    mutating func command(_ byte: UInt8) { keyboard.writeByte(4, byte, at: now) }
    mutating func data(_ byte: UInt8) { keyboard.writeByte(0, byte, at: now) }
    mutating func status() -> UInt8 { keyboard.readByte(4, at: now) }
    mutating func answer() -> UInt8? { status() & 1 != 0 ? keyboard.readByte(0, at: now) : nil }

    @Test mutating func pulsingBit0ResetsTheMachine() {
        for byte in [0xfe, 0xf0, 0xfc] as [UInt8] {
            command(byte)
            #expect(keyboard.takeRequest() == .reset)
            #expect(keyboard.takeRequest() == nil)
        }
        command(0xff)
        #expect(keyboard.takeRequest() == nil)
        command(0xd1)
        data(0xfe)
        #expect(keyboard.takeRequest() == .reset)
    }

    @Test mutating func a20IsKeptAndReadBack() {
        #expect(keyboard.isA20Enabled)
        command(0xdd)
        #expect(!keyboard.isA20Enabled)
        command(0xdf)
        #expect(keyboard.isA20Enabled)
        command(0xd1)
        data(0xdd)
        #expect(!keyboard.isA20Enabled)
        command(0xd0)
        #expect(answer() == 0xcd)
    }

    @Test mutating func testsPassButTheMousePortIsAbsent() {
        command(0xaa)
        #expect(status() & 0x0d == 0x0d)
        #expect(answer() == 0x55)
        #expect(answer() == nil)
        command(0xab)
        #expect(answer() == 0x00)
        command(0xa9)
        #expect(answer() != 0x00)
        command(0xd3)
        data(0x5a)
        #expect(status() & 0x20 == 0, "not from a mouse")
    }

    @Test mutating func commandByteIsReadWrittenAndSwitched() {
        command(0x60)
        data(0x47)
        command(0x20)
        #expect(answer() == 0x47)
        command(0xad)
        command(0xa7)
        command(0x20)
        #expect(answer() == 0x77)
        command(0xae)
        command(0xa8)
        command(0x20)
        #expect(answer() == 0x47)
        command(0xc0)
        #expect(answer() == 0x80)
    }

    @Test mutating func anAbsentKeyboardTimesOut() {
        command(0x60)
        data(0x01)
        data(0xf2)
        #expect(status() & 0x49 == 0x41)
        #expect(keyboard.irq)
        #expect(answer() == 0xfe)
        #expect(!keyboard.irq)
        #expect(status() & 0x40 == 0)
        command(0xd4)
        data(0xff)
        #expect(answer() == 0xfe)
    }
}

@Suite struct SystemPortsTests {
    var board = SystemPorts()

    mutating func read(_ port: UInt16, at now: UInt64 = 0) -> UInt8 { board.readByte(port, at: Nanoseconds(now)) }
    mutating func write(_ port: UInt16, _ value: UInt8) { board.writeByte(port, value, at: Nanoseconds(0)) }

    @Test mutating func port61KeepsItsLowBitsAndTogglesRefreshEvery15Microseconds() {
        write(0x61, 0xff)
        #expect(read(0x61) == 0x0f)
        #expect(board.timer2Gate)
        #expect(read(0x61, at: 14_999) == 0x0f)
        #expect(read(0x61, at: 15_000) == 0x1f)
        #expect(read(0x61, at: 30_000) == 0x0f)
        write(0x61, 0xfe)
        #expect(!board.timer2Gate)
    }

    @Test mutating func port92ResetsOnARisingBit0AndKeepsA20() {
        #expect(read(0x92) == 0x02)
        write(0x92, 0x00)
        #expect(read(0x92) == 0x00)
        #expect(board.takeRequest() == nil)
        write(0x92, 0x03)
        #expect(board.takeRequest() == .reset)
        write(0x92, 0x03)
        #expect(board.takeRequest() == nil)
    }

    @Test mutating func resetControlResetsOnARisingBit2() {
        write(0xcf9, 0x02)
        #expect(board.takeRequest() == nil)
        write(0xcf9, 0x06)
        #expect(board.takeRequest() == .reset)
        #expect(read(0xcf9) == 0x06)
        write(0xcf9, 0x0e)
        #expect(board.takeRequest() == nil)
    }

    @Test mutating func postPortReadsBack() {
        write(0x80, 0xab)
        #expect(read(0x80) == 0xab)
        #expect(board.postCode == 0xab)
        write(0xed, 1)
        #expect(read(0xed) == 0xff)
    }
}

@Suite struct ACPIPowerManagementTests {
    @Test func theTimerCounts3579545ASecondExactly() {
        var acpi = ACPIPowerManagement()
        #expect(acpi.read(offset: 8, size: 4, at: .seconds(1)) == 3_579_545)
        #expect(acpi.read(offset: 8, size: 4, at: Nanoseconds(1_999_999_999)) == 2 * 3_579_545 - 1)
        let wrapped = UInt32(truncatingIfNeeded: 35_795_450_000 as UInt64)
        #expect(acpi.read(offset: 8, size: 4, at: .seconds(10_000)) == wrapped)
        var narrow = ACPIPowerManagement(isTimer32Bit: false)
        #expect(narrow.read(offset: 8, size: 4, at: .seconds(10)) == 35_795_450 & 0xff_ffff)
    }

    @Test func theTimersTopBitRaisesTheSCI() {
        for (wide, half) in [(true, UInt64(1) << 31), (false, 1 << 23)] {
            var acpi = ACPIPowerManagement(isTimer32Bit: wide)
            #expect(acpi.nextDeadline(after: Nanoseconds(0)) == nil)
            acpi.write(offset: 2, size: 2, value: 1, at: Nanoseconds(0))
            let moment = ACPIPowerManagement.clock.time(ofTick: half)!
            #expect(acpi.nextDeadline(after: Nanoseconds(0)) == moment)
            acpi.advance(to: Nanoseconds(moment.rawValue - 1))
            #expect(!acpi.irq)
            acpi.advance(to: moment)
            #expect(acpi.irq)
            #expect(acpi.read(offset: 0, size: 2, at: moment) == 1)
            acpi.write(offset: 0, size: 2, value: 1, at: moment)
            #expect(!acpi.irq, "a 1 clears it")
            #expect(acpi.nextDeadline(after: moment) == ACPIPowerManagement.clock.time(ofTick: 2 * half))
            acpi.write(offset: 4, size: 2, value: 0, at: moment)
            acpi.advance(to: .seconds(5_000))
            #expect(!acpi.irq, "not without SCI_EN")
        }
    }

    @Test func sleepEnableWithS5SwitchesOff() {
        var acpi = ACPIPowerManagement()
        #expect(acpi.read(offset: 4, size: 2, at: Nanoseconds(0)) == 1)
        acpi.write(offset: 4, size: 2, value: 0x2001, at: Nanoseconds(0))
        #expect(acpi.takeRequest() == nil)
        let value = UInt32(ACPIPowerManagement.sleepTypeS5) << 10 | 1
        acpi.write(offset: 4, size: 2, value: value, at: Nanoseconds(0))
        #expect(acpi.takeRequest() == nil)
        acpi.write(offset: 4, size: 2, value: value | 0x2000, at: Nanoseconds(0))
        #expect(acpi.takeRequest() == .powerOff)
        #expect(acpi.read(offset: 4, size: 2, at: Nanoseconds(0)) == value, "SLP_EN reads as 0")
    }

    @Test func enableBitsAreKept() {
        var acpi = ACPIPowerManagement()
        acpi.write(offset: 0, size: 4, value: 0xffff_ffff, at: Nanoseconds(0))
        #expect(acpi.read(offset: 0, size: 4, at: Nanoseconds(0)) == 0x0721_0000)
    }
}

@Suite struct FirmwareConfigTests {
    static let contents = FirmwareContents(
        memoryBytes: 0x1_2345_6789, cpuCount: 2, maxCPUs: 4, kernel: .init(address: 0x10_0000, bytes: [1, 2, 3, 4, 5]),
        kernelEntry: 0x10_0200, initrd: .init(address: 0x800_0000, bytes: [6, 7]),
        commandLine: .init(address: 0x2_0000, bytes: Array("quiet\0".utf8)), bootDevice: UInt8(ascii: "c"),
        files: [
            .init(name: "etc/e820", bytes: [0xaa, 0xbb]),
            .init(name: String(repeating: "n", count: 80), bytes: [0xcc]),
        ])
    var device = FirmwareConfig(contents: Self.contents)

    mutating func item(_ key: UInt16, _ count: Int) -> [UInt8] {
        device.write(offset: 0, size: 2, value: UInt32(key), at: Nanoseconds(0))
        return (0..<count).map { _ in UInt8(device.read(offset: 1, size: 1, at: Nanoseconds(0))) }
    }

    @Test mutating func wellKnownItems() {
        #expect(item(0x00, 6) == Array("QEMU".utf8) + [0, 0])
        #expect(item(0x01, 4) == [1, 0, 0, 0], "no DMA")
        #expect(item(0x03, 8) == [0x89, 0x67, 0x45, 0x23, 1, 0, 0, 0])
        #expect(item(0x05, 2) == [2, 0])
        #expect(item(0x0f, 2) == [4, 0])
        #expect(item(0x0c, 2) == [UInt8(ascii: "c"), 0])
        #expect(item(0x07, 4) == [0, 0, 0x10, 0])
        #expect(item(0x08, 4) == [5, 0, 0, 0])
        #expect(item(0x10, 4) == [0, 2, 0x10, 0])
        #expect(item(0x11, 7) == [1, 2, 3, 4, 5, 0, 0])
        #expect(item(0x0a, 4) == [0, 0, 0, 8])
        #expect(item(0x0b, 4) == [2, 0, 0, 0])
        #expect(item(0x12, 2) == [6, 7])
        #expect(item(0x13, 4) == [0, 0, 2, 0])
        #expect(item(0x14, 4) == [6, 0, 0, 0])
        #expect(item(0x15, 6) == Array("quiet\0".utf8))
        #expect(item(0x17, 4) == [0, 0, 0, 0])
    }

    @Test mutating func unknownItemsReadAsZero() {
        for key in [0x09, 0x1a, 0x22, 0x3fff, 0x8003, 0xffff] as [UInt16] {
            #expect(item(key, 3) == [0, 0, 0])
        }
    }

    @Test mutating func theDirectoryIsBigEndianAndNamesEndInZero() {
        let directory = item(0x19, 4 + 2 * 64 + 1)
        #expect(directory[0..<4] == [0, 0, 0, 2])
        #expect(directory[4..<12] == [0, 0, 0, 2, 0, 0x20, 0, 0])
        #expect(directory[12..<21] == Array("etc/e820".utf8)[...] + [0])
        #expect(directory[68..<76] == [0, 0, 0, 1, 0, 0x21, 0, 0])
        #expect(directory[76..<131].allSatisfy { $0 == UInt8(ascii: "n") })
        #expect(directory[131] == 0)
        #expect(item(0x20, 3) == [0xaa, 0xbb, 0])
        #expect(item(0x4021, 2) == [0xcc, 0], "also through the write channel")
    }

    @Test mutating func onlyA16BitWriteSelects() {
        _ = item(0x11, 1)
        for size in [1, 4] { device.write(offset: 0, size: size, value: 0, at: Nanoseconds(0)) }
        device.write(offset: 1, size: 1, value: 9, at: Nanoseconds(0))
        #expect(device.read(offset: 1, size: 1, at: Nanoseconds(0)) == 2)
        #expect(device.read(offset: 0, size: 2, at: Nanoseconds(0)) == 0x0300)
    }
}

@Suite struct TestDeviceTests {
    var device = TestDevice()
    let now = Nanoseconds(0)

    @Test mutating func theLatchTakesAllSizesAtBothWindows() {
        device.write(offset: 0xe0, size: 4, value: 0x1234_5678, at: now)
        #expect(device.read(offset: 0xe0, size: 4, at: now) == 0x1234_5678)
        device.write(offset: 0xe1, size: 1, value: 0xab, at: now)
        device.write(offset: 0xea, size: 2, value: 0xcdef, at: now)
        #expect(device.read(offset: 0xe8, size: 4, at: now) == 0xcdef_ab78)
        #expect(device.read(offset: 0xe2, size: 2, at: now) == 0xcdef)
        device.write(offset: 0xe4, size: 4, value: 0x1000, at: now)
        #expect(device.read(offset: 0xe0, size: 4, at: now) == 0xcdef_ab78)
    }

    @Test mutating func linesReportTheirChanges() {
        #expect(device.takeLineChanges().count == 0)
        for (line, value) in [(0x2000, 1), (0x2017, 5), (0x2017, 7), (0x2000, 0), (0x2018, 1)] as [(UInt16, UInt8)] {
            device.writeByte(line, value, at: now)
        }
        #expect(device.hasLineChanges)
        let changes = device.takeLineChanges()
        #expect(changes.map(\.gsi) == [0, 23, 0])
        #expect(changes.map(\.level) == [true, true, false])
        #expect(device.readByte(0x2017, at: now) == 1)
        #expect(!device.hasLineChanges)
    }

    @Test mutating func theWindowKeepsWhatIsWritten() {
        #expect(device.readWindow(offset: 0, size: 8) == 0)
        device.writeWindow(offset: 0x100, size: 8, value: 0x0102_0304_0506_0708)
        #expect(device.readWindow(offset: 0x102, size: 4) == 0x0304_0506)
        device.writeWindow(offset: 0xffff, size: 2, value: 0xaabb)
        #expect(device.readWindow(offset: 0xffff, size: 1) == 0xbb)
        #expect(device.readWindow(offset: 0, size: 1) == 0xaa)
    }
}
