import Testing
import VMCore

@Suite struct X2APICTests {
    private let now = Nanoseconds(0)
    private static let disabled: UInt64 = 0xfee0_0100
    private static let xAPIC: UInt64 = 0xfee0_0900
    private static let x2APIC: UInt64 = 0xfee0_0d00
    private static let invalid: UInt64 = 0xfee0_0500

    @Test func onlyTheLegalTransitionsAreAllowed() {
        let legal: [(from: UInt64, to: [UInt64])] = [
            (Self.disabled, [Self.disabled, Self.xAPIC]),
            (Self.xAPIC, [Self.disabled, Self.xAPIC, Self.x2APIC]),
            (Self.x2APIC, [Self.disabled, Self.x2APIC]),
        ]
        for (from, allowed) in legal {
            for to in [Self.disabled, Self.xAPIC, Self.x2APIC, Self.invalid] {
                var apic = LocalAPIC()
                #expect(apic.writeMSR(0x1b, from, at: now) == true)
                #expect(apic.writeMSR(0x1b, to, at: now) == allowed.contains(to))
                #expect(apic.readMSR(0x1b, at: now) == (allowed.contains(to) ? to : from))
            }
        }
    }

    @Test func reservedBaseBitsFault() {
        var apic = LocalAPIC(physicalAddressBits: 40)
        for bit in Array(0..<8) + [9] + Array(40..<64) as [UInt64] {
            #expect(apic.writeMSR(0x1b, Self.xAPIC | 1 << bit, at: now) == false)
        }
        #expect(apic.writeMSR(0x1b, 0xff_ffff_f000 | 0x900, at: now) == true)
        #expect(apic.page == GuestPhysicalAddress(0xff_ffff_f000))
    }

    @Test func aProcessorWithoutX2APICFaultsOnItsBit() {
        var apic = LocalAPIC(offersX2APIC: false)
        #expect(apic.writeMSR(0x1b, Self.x2APIC, at: now) == false)
    }

    @Test func theBootProcessorBitStays() {
        var apic = LocalAPIC()
        #expect(apic.writeMSR(0x1b, 0xfee0_0800, at: now) == true)
        #expect(apic.readMSR(0x1b, at: now) == Self.xAPIC)
    }

    @Test func enablingX2APICKeepsRegistersButTheICRsHighHalf() {
        var apic = LocalAPIC.enabled()
        apic.set(LocalAPIC.Register.taskPriority, 0x40)
        apic.send(0x40000 | 0x31, to: 0)
        apic.set(LocalAPIC.Register.interruptCommandHigh, 0x0500_0000)
        #expect(apic.writeMSR(0x1b, Self.x2APIC, at: now) == true)
        #expect(apic.readMSR(0x808, at: now) == 0x40)
        #expect(apic.readMSR(0x830, at: now) == 0x40031)
        #expect(apic.requests[0x31])
        #expect(apic.page == nil)
    }

    @Test func disablingResetsTheRegisters() {
        var apic = LocalAPIC.enabledX2APIC()
        #expect(apic.writeMSR(0x83f, 0x31, at: now) == true)
        #expect(apic.writeMSR(0x1b, Self.disabled, at: now) == true)
        #expect(apic.deliverableVector(tpr: 0) == nil)
        #expect(apic.writeMSR(0x1b, Self.xAPIC, at: now) == true)
        #expect(apic.requests == VectorSet() && apic.get(LocalAPIC.Register.spuriousVector) == 0xff)
    }

    @Test func msrsFaultOutsideX2APICMode() {
        var apic = LocalAPIC.enabled()
        for index in 0x800...0x8ff as ClosedRange<UInt32> {
            #expect(apic.readMSR(index, at: now) == nil)
            #expect(apic.writeMSR(index, 0, at: now) == false)
        }
    }

    @Test func exactlyTheDocumentedMSRsAreReadable() {
        var apic = LocalAPIC.enabledX2APIC()
        let readable: Set<UInt32> = Set(
            [0x802, 0x803, 0x808, 0x80a, 0x80d, 0x80f, 0x830, 0x83e] + Array(0x810...0x828) + Array(0x832...0x839))
        for index in 0x7f0...0x90f as ClosedRange<UInt32> {
            #expect((apic.readMSR(index, at: now) != nil) == readable.contains(index), "MSR \(index)")
        }
    }

    @Test func exactlyTheDocumentedMSRsAreWritable() {
        let writable: Set<UInt32> = Set([0x808, 0x80b, 0x80f, 0x828, 0x830] + Array(0x832...0x838) + [0x83e])
        for index in 0x7f0...0x90f as ClosedRange<UInt32> {
            var apic = LocalAPIC.enabledX2APIC()
            let expected = writable.contains(index) || index == 0x83f
            #expect(apic.writeMSR(index, 0, at: now) == expected, "MSR \(index)")
        }
    }

    @Test func reservedBitsFaultAndChangeNothing() {
        let cases: [(UInt32, UInt64)] = [
            (0x808, 0x100), (0x80b, 1), (0x80f, 0x400), (0x828, 1), (0x830, 1 << 12), (0x830, 1 << 13),
            (0x830, 1 << 20), (0x832, 1 << 18), (0x832, 1 << 8), (0x833, 1 << 15), (0x835, 1 << 17), (0x837, 1 << 8),
            (0x838, 1 << 32),
            (0x83e, 4), (0x83f, 0x100), (0x835, 1 << 32),
        ]
        var apic = LocalAPIC.enabledX2APIC()
        let before = apic
        for (index, value) in cases {
            #expect(apic.writeMSR(index, value, at: now) == false, "MSR \(index) = \(value)")
        }
        #expect(apic == before)
    }

    @Test func anLVTReadsBackAsItWasWrittenWithReadOnlyBitsIgnored() {
        var apic = LocalAPIC.enabledX2APIC()
        #expect(apic.writeMSR(0x835, 0x1f7ff, at: now) == true)
        #expect(apic.readMSR(0x835, at: now) == 0x1a7ff)
    }

    @Test func selfIPIArrives() {
        var apic = LocalAPIC.enabledX2APIC()
        #expect(apic.writeMSR(0x83f, 0x41, at: now) == true)
        #expect(apic.acknowledge(tpr: 0) == 0x41)
        #expect(apic.writeMSR(0x83f, 0x0f, at: now) == true)
        #expect(apic.writeMSR(0x828, 0, at: now) == true)
        #expect(apic.readMSR(0x828, at: now) == 0x20)
    }

    @Test func theICRTakes32BitDestinations() {
        let cases: [(UInt64, Bool)] = [
            (0 << 32 | 0x51, true), (1 << 32 | 0x51, false), (0xff << 32 | 0x51, false),
            (0xffff_ffff << 32 | 0x51, true), (1 << 32 | 0x851, true), (2 << 32 | 0x851, false),
            (0x10001 << 32 | 0x851, false),
        ]
        for (command, arrives) in cases {
            var apic = LocalAPIC.enabledX2APIC()
            #expect(apic.writeMSR(0x830, command, at: now) == true)
            #expect(apic.requests[0x51] == arrives)
            #expect(apic.readMSR(0x830, at: now) == command)
        }
    }

    @Test func idAndLogicalIDFollowTheInitialID() {
        var apic = LocalAPIC(id: 0x25)
        #expect(apic.writeMSR(0x1b, Self.x2APIC, at: now) == true)
        #expect(apic.readMSR(0x802, at: now) == 0x25)
        #expect(apic.readMSR(0x80d, at: now) == 0x2_0020)
    }

    @Test func theIOAPICsBroadcastStillArrives() {
        let apic = LocalAPIC.enabledX2APIC()
        var message = InterruptMessage(
            destination: 0xff, isLogical: false, mode: .fixed, vector: 0x61, isLevelTriggered: false)
        #expect(apic.isDestination(of: message))
        message.destination = 0xfe
        #expect(!apic.isDestination(of: message))
    }

    @Test func eoiWorksThroughItsMSR() {
        var apic = LocalAPIC.enabledX2APIC()
        #expect(apic.writeMSR(0x83f, 0x41, at: now) == true)
        _ = apic.acknowledge(tpr: 0)
        #expect(apic.readMSR(0x812, at: now) == 2)
        #expect(apic.writeMSR(0x80b, 0, at: now) == true)
        #expect(apic.readMSR(0x812, at: now) == 0)
    }
}
