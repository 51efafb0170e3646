import Foundation
import Testing
import VMCore

@Suite struct IOAPICTests {
    private let now = Nanoseconds(0)
    private static let level: UInt32 = 1 << 15
    private static let masked: UInt32 = 1 << 16
    private static let remoteIRR: UInt32 = 1 << 14

    private func write(_ io: inout IOAPIC, _ register: UInt8, _ value: UInt32) {
        io.writeMMIO(offset: 0x00, size: 4, value: UInt64(register), at: now)
        io.writeMMIO(offset: 0x10, size: 4, value: UInt64(value), at: now)
    }

    private func read(_ io: inout IOAPIC, _ register: UInt8) -> UInt32 {
        io.writeMMIO(offset: 0x00, size: 4, value: UInt64(register), at: now)
        return UInt32(io.readMMIO(offset: 0x10, size: 4, at: now))
    }

    private func program(_ io: inout IOAPIC, pin: UInt8, _ low: UInt32, high: UInt32 = 0) {
        write(&io, 0x11 + 2 * pin, high)
        write(&io, 0x10 + 2 * pin, low)
    }

    /// Takes all requested messages as if a local APIC accepted them; returns their vectors.
    private func take(_ io: inout IOAPIC) -> [UInt8] {
        (0..<24).filter { io.requests & (1 << UInt32($0)) != 0 }.map { pin in
            let vector = io.message(for: pin).vector
            io.finish(pin, accepted: true)
            return vector
        }
    }

    @Test func versionSaysTwentyFourPins() {
        var io = IOAPIC()
        #expect(read(&io, 1) == 0x0017_0020)
        write(&io, 1, 0xffff_ffff)
        #expect(read(&io, 1) == 0x0017_0020)
    }

    @Test func identificationIsFourBitsAndLoadsArbitration() {
        var io = IOAPIC()
        write(&io, 0, 0xffff_ffff)
        #expect(read(&io, 0) == 0x0f00_0000)
        #expect(read(&io, 2) == 0x0f00_0000)
        write(&io, 2, 0)
        #expect(read(&io, 2) == 0x0f00_0000)
    }

    @Test func selectReadsBack() {
        var io = IOAPIC()
        io.writeMMIO(offset: 0, size: 1, value: 0x1ab, at: now)
        #expect(io.readMMIO(offset: 0, size: 4, at: now) == 0xab)
    }

    @Test func entriesAreMaskedAtResetAndKeepTheirWritableBits() {
        var io = IOAPIC()
        for pin in 0..<24 as Range<UInt8> {
            #expect(read(&io, 0x10 + 2 * pin) == Self.masked)
            #expect(read(&io, 0x11 + 2 * pin) == 0)
            program(&io, pin: pin, 0xffff_ffff, high: 0xffff_ffff)
            #expect(read(&io, 0x10 + 2 * pin) == 0x0001_afff)
            #expect(read(&io, 0x11 + 2 * pin) == 0xff00_0000)
        }
    }

    @Test func reservedRegistersReadZero() {
        var io = IOAPIC()
        for register in [3, 0x0f, 0x40, 0xff] as [UInt8] {
            write(&io, register, 0xffff_ffff)
            #expect(read(&io, register) == 0)
        }
        #expect(io.readMMIO(offset: 0x20, size: 4, at: now) == 0)
        #expect(io.readMMIO(offset: 0x40, size: 4, at: now) == 0)
    }

    @Test func narrowWindowWritesAreIgnoredAndWideOnesTakeTheLowHalf() {
        var io = IOAPIC()
        io.writeMMIO(offset: 0, size: 4, value: 0x10, at: now)
        io.writeMMIO(offset: 0x10, size: 2, value: 0x33, at: now)
        #expect(io.table[0].rawValue == 0x10000)
        io.writeMMIO(offset: 0x10, size: 8, value: 0xffff_ffff_0001_0044, at: now)
        #expect(io.table[0].rawValue == 0x10044)
        #expect(io.readMMIO(offset: 0x10, size: 2, at: now) == 0x44)
        #expect(io.readMMIO(offset: 0x10, size: 8, at: now) == 0x10044)
    }

    @Test func anEdgeSendsOneMessage() {
        var io = IOAPIC()
        program(&io, pin: 5, 0x0000_0835, high: 0x0300_0000)
        io.setPin(5, level: true)
        #expect(
            io.message(for: 5)
                == InterruptMessage(
                    destination: 3, isLogical: true, mode: .fixed, vector: 0x35, isLevelTriggered: false))
        #expect(take(&io) == [0x35])
        io.setPin(5, level: true)
        #expect(take(&io) == [])
        io.setPin(5, level: false)
        io.setPin(5, level: true)
        #expect(take(&io) == [0x35])
    }

    @Test func aMaskedEdgeIsLost() {
        var io = IOAPIC()
        program(&io, pin: 5, Self.masked | 0x35)
        io.setPin(5, level: true)
        #expect(take(&io) == [])
        program(&io, pin: 5, 0x35)
        #expect(take(&io) == [])
    }

    @Test func aMaskedLevelIsKept() {
        var io = IOAPIC()
        program(&io, pin: 5, Self.masked | Self.level | 0x35)
        io.setPin(5, level: true)
        #expect(take(&io) == [])
        program(&io, pin: 5, Self.level | 0x35)
        #expect(take(&io) == [0x35])
    }

    @Test func aLevelThatFallsBeforeUnmaskingIsGone() {
        var io = IOAPIC()
        program(&io, pin: 5, Self.masked | Self.level | 0x35)
        io.setPin(5, level: true)
        io.setPin(5, level: false)
        program(&io, pin: 5, Self.level | 0x35)
        #expect(take(&io) == [])
    }

    @Test func remoteIRRHoldsALevelUntilItsEOI() {
        var io = IOAPIC()
        program(&io, pin: 9, Self.level | 0x61)
        io.setPin(9, level: true)
        #expect(take(&io) == [0x61])
        #expect(read(&io, 0x22) & Self.remoteIRR != 0)
        io.setPin(9, level: false)
        io.setPin(9, level: true)
        #expect(take(&io) == [], "still in service")
        io.endOfInterrupt(0x62)
        #expect(take(&io) == [], "another vector's EOI")
        io.endOfInterrupt(0x61)
        #expect(take(&io) == [0x61], "still asserted")
        io.setPin(9, level: false)
        io.endOfInterrupt(0x61)
        #expect(read(&io, 0x22) & Self.remoteIRR == 0)
        #expect(take(&io) == [])
    }

    @Test func theEOIRegisterEndsALevel() {
        var io = IOAPIC()
        program(&io, pin: 9, Self.level | 0x61)
        io.setPin(9, level: true)
        _ = take(&io)
        io.writeMMIO(offset: 0x40, size: 2, value: 0x61, at: now)
        #expect(io.table[9].hasRemoteIRR)
        io.writeMMIO(offset: 0x40, size: 4, value: 0x61, at: now)
        #expect(take(&io) == [0x61])
    }

    @Test func oneEOIEndsAllPinsThatShareTheVector() {
        var io = IOAPIC()
        for pin in [16, 17] {
            program(&io, pin: UInt8(pin), Self.level | 0x61)
            io.setPin(pin, level: true)
        }
        #expect(take(&io) == [0x61, 0x61])
        io.endOfInterrupt(0x61)
        #expect(take(&io) == [0x61, 0x61])
    }

    @Test func remoteIRRCannotBeWrittenAndEdgeModeClearsIt() {
        var io = IOAPIC()
        program(&io, pin: 9, Self.masked | Self.level | Self.remoteIRR | 0x61)
        #expect(!io.table[9].hasRemoteIRR)
        program(&io, pin: 9, Self.level | 0x61)
        io.setPin(9, level: true)
        _ = take(&io)
        program(&io, pin: 9, Self.masked | Self.level | 0x61)
        #expect(io.table[9].hasRemoteIRR)
        program(&io, pin: 9, Self.masked | 0x61)
        #expect(!io.table[9].hasRemoteIRR)
        program(&io, pin: 9, Self.level | 0x61)
        #expect(take(&io) == [0x61])
    }

    @Test func aRefusedLevelWaitsAndARefusedEdgeIsLost() {
        var io = IOAPIC()
        program(&io, pin: 4, 0x34)
        program(&io, pin: 9, Self.level | 0x61)
        io.setPin(4, level: true)
        io.setPin(9, level: true)
        io.finish(4, accepted: false)
        io.finish(9, accepted: false)
        #expect(!io.table[9].hasRemoteIRR)
        #expect(take(&io) == [0x61])
    }

    @Test func polarityDoesNotInvertTheLogicalLevel() {
        var io = IOAPIC()
        program(&io, pin: 9, Self.level | 1 << 13 | 0x61)
        #expect(take(&io) == [])
        io.setPin(9, level: true)
        #expect(take(&io) == [0x61])
    }

    @Test func nmiIsAnEdgeWhateverTheTriggerMode() {
        var io = IOAPIC()
        program(&io, pin: 7, Self.level | 0x400)
        io.setPin(7, level: true)
        #expect(io.message(for: 7).mode == .nmi && !io.message(for: 7).isLevelTriggered)
        _ = take(&io)
        #expect(!io.table[7].hasRemoteIRR)
        #expect(take(&io) == [])
    }

    @Test func pinsThatDoNotExistAreIgnored() {
        var io = IOAPIC()
        for pin in [-1, 24, 32, Int.max, Int.min] {
            io.setPin(pin, level: true)
            io.finish(pin, accepted: true)
            #expect(io.table[pin].isMasked)
        }
        #expect(io == IOAPIC())
    }

    @Test(arguments: [0, 23, 25]) func aTableOfAnotherLengthIsRefused(length: Int) throws {
        let entries = Array(repeating: IOAPIC.RedirectionEntry(rawValue: 0), count: length)
        let data = try JSONEncoder().encode(entries)
        #expect(throws: DecodingError.self) {
            try JSONDecoder().decode(IOAPIC.RedirectionTable.self, from: data)
        }
    }
}
