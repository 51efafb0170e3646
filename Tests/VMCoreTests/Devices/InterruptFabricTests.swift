import Testing
import VMCore

@Suite struct InterruptFabricTests {
    private let now = Nanoseconds(0)
    private static let lapic: UInt64 = 0xfee0_0000
    private static let ioapic: UInt64 = 0xfec0_0000

    private func out(_ fabric: inout InterruptFabric, _ bytes: [(UInt16, UInt8)]) {
        for (port, value) in bytes { fabric.write(offset: port, size: 1, value: UInt32(value), at: now) }
    }

    private func set(_ fabric: inout InterruptFabric, _ register: UInt32, _ value: UInt32) {
        fabric.writeMMIO(
            address: GuestPhysicalAddress(Self.lapic + UInt64(register)), size: 4, value: UInt64(value), at: now)
    }

    private func redirect(_ fabric: inout InterruptFabric, pin: UInt64, _ low: UInt64, high: UInt64 = 0) {
        for (register, value) in [(0x11 + 2 * pin, high), (0x10 + 2 * pin, low)] {
            fabric.writeMMIO(address: GuestPhysicalAddress(Self.ioapic), size: 4, value: register, at: now)
            fabric.writeMMIO(address: GuestPhysicalAddress(Self.ioapic + 0x10), size: 4, value: value, at: now)
        }
    }

    /// A machine as PC firmware leaves it, with the 8259s set up: vectors 0x20 and 0x28.
    private func withPIC() -> InterruptFabric {
        var fabric = InterruptFabric()
        out(&fabric, [(0x20, 0x11), (0x21, 0x20), (0x21, 4), (0x21, 1)])
        out(&fabric, [(0xa0, 0x11), (0xa1, 0x28), (0xa1, 2), (0xa1, 1)])
        return fabric
    }

    /// A machine with the local APIC enabled and all of the 8259s masked.
    private func withAPIC() -> InterruptFabric {
        var fabric = InterruptFabric()
        set(&fabric, LocalAPIC.Register.spuriousVector, 0x1ff)
        return fabric
    }

    // MARK: 8259s to the processor

    @Test func thePICReachesTheProcessorThroughLINT0AtReset() {
        var fabric = withPIC()
        #expect(!fabric.interruptPending(tpr: 0))
        fabric.pulse(0, at: now)
        #expect(fabric.interruptPending(tpr: 0xf0), "ExtINT knows no task priority")
        #expect(fabric.acknowledge(tpr: 0xf0, at: now) == 0x20)
        #expect(!fabric.interruptPending(tpr: 0))
        #expect(fabric.acknowledge(tpr: 0, at: now) == nil)
    }

    @Test func maskingLINT0StopsThePIC() {
        var fabric = withPIC()
        set(&fabric, LocalAPIC.Register.lvtLINT0, 0x10700)
        fabric.pulse(4, at: now)
        #expect(!fabric.interruptPending(tpr: 0))
        set(&fabric, LocalAPIC.Register.spuriousVector, 0x1ff)
        set(&fabric, LocalAPIC.Register.lvtLINT0, 0x700)
        #expect(fabric.acknowledge(tpr: 0, at: now) == 0x24)
    }

    @Test func disablingTheLocalAPICPassesThePICOn() {
        var fabric = withPIC()
        set(&fabric, LocalAPIC.Register.lvtLINT0, 0x10700)
        fabric.pulse(4, at: now)
        #expect(fabric.writeMSR(0x1b, value: 0xfee0_0100, at: now) == true)
        #expect(fabric.acknowledge(tpr: 0, at: now) == 0x24)
    }

    @Test func pin0AsExtINTPassesThePICOn() {
        var fabric = withPIC()
        set(&fabric, LocalAPIC.Register.spuriousVector, 0x1ff)
        set(&fabric, LocalAPIC.Register.lvtLINT0, 0x10700)
        fabric.pulse(4, at: now)
        #expect(!fabric.interruptPending(tpr: 0))
        redirect(&fabric, pin: 0, 0x700, high: 0x0500_0000)
        #expect(!fabric.interruptPending(tpr: 0), "for another processor")
        redirect(&fabric, pin: 0, 0x700)
        #expect(fabric.acknowledge(tpr: 0, at: now) == 0x24)
    }

    @Test func pin0AsFixedTakesThePICsOutputAsALine() {
        var fabric = withPIC()
        set(&fabric, LocalAPIC.Register.spuriousVector, 0x1ff)
        set(&fabric, LocalAPIC.Register.lvtLINT0, 0x10700)
        redirect(&fabric, pin: 0, 0x50)
        fabric.pulse(4, at: now)
        #expect(fabric.acknowledge(tpr: 0, at: now) == 0x50)
    }

    @Test func eachINTALowersThePICsOutput() {
        var fabric = InterruptFabric()
        out(&fabric, [(0x20, 0x11), (0x21, 0x20), (0x21, 4), (0x21, 3)])
        set(&fabric, LocalAPIC.Register.spuriousVector, 0x1ff)
        redirect(&fabric, pin: 0, 0x50)
        fabric.pulse(4, at: now)
        fabric.pulse(5, at: now)
        #expect(fabric.acknowledge(tpr: 0, at: now) == 0x50)
        #expect(fabric.acknowledge(tpr: 0, at: now) == 0x24)
        set(&fabric, LocalAPIC.Register.endOfInterrupt, 0)
        #expect(fabric.acknowledge(tpr: 0, at: now) == 0x50, "a new edge for IRQ 5")
    }

    @Test func lint0AsFixedTakesEachTickOfAPICLine() {
        var fabric = withPIC()
        set(&fabric, LocalAPIC.Register.spuriousVector, 0x1ff)
        set(&fabric, LocalAPIC.Register.lvtLINT0, 0x31)
        for _ in 0..<3 {
            fabric.pulse(0, at: now)
            #expect(fabric.acknowledge(tpr: 0, at: now) == 0x31)
            set(&fabric, LocalAPIC.Register.endOfInterrupt, 0)
        }
    }

    @Test func theLocalAPICComesBeforeThePIC() {
        var fabric = withPIC()
        set(&fabric, LocalAPIC.Register.spuriousVector, 0x1ff)
        fabric.pulse(4, at: now)
        set(&fabric, LocalAPIC.Register.interruptCommandLow, 0x40031)
        #expect(fabric.acknowledge(tpr: 0, at: now) == 0x31)
        #expect(fabric.acknowledge(tpr: 0, at: now) == 0x24)
    }

    @Test func pollingThePICLowersLINT0() {
        var fabric = withPIC()
        fabric.pulse(4, at: now)
        out(&fabric, [(0x20, 0x0c)])
        #expect(fabric.read(offset: 0x20, size: 1, at: now) == 0x84)
        #expect(!fabric.interruptPending(tpr: 0))
    }

    // MARK: I/O APIC to the processor

    @Test func isaLinesReachTheirPinsAndLine0ReachesPin2() {
        for line in 0..<16 where line != 2 {
            var fabric = withAPIC()
            for pin in 0..<24 as Range<UInt64> { redirect(&fabric, pin: pin, 0x40 + pin) }
            fabric.setLine(line, level: true, at: now)
            #expect(fabric.acknowledge(tpr: 0, at: now) == UInt8(0x40 + (line == 0 ? 2 : line)))
            set(&fabric, LocalAPIC.Register.endOfInterrupt, 0)
            #expect(fabric.acknowledge(tpr: 0, at: now) == nil)
        }
    }

    @Test func everyGSIButZeroReachesItsPin() {
        for pin in 0..<24 {
            var fabric = withAPIC()
            redirect(&fabric, pin: UInt64(pin), 0x40)
            fabric.setPin(pin, level: true, at: now)
            #expect(fabric.acknowledge(tpr: 0, at: now) == (pin == 0 ? nil : 0x40))
        }
    }

    @Test func aLevelComesAgainAfterEOIUntilItFalls() {
        var fabric = withAPIC()
        redirect(&fabric, pin: 16, 0x8061)
        fabric.setPin(16, level: true, at: now)
        for _ in 0..<3 {
            #expect(fabric.acknowledge(tpr: 0, at: now) == 0x61)
            #expect(!fabric.interruptPending(tpr: 0))
            set(&fabric, LocalAPIC.Register.endOfInterrupt, 0)
            #expect(fabric.interruptPending(tpr: 0))
        }
        #expect(fabric.acknowledge(tpr: 0, at: now) == 0x61)
        fabric.setPin(16, level: false, at: now)
        set(&fabric, LocalAPIC.Register.endOfInterrupt, 0)
        #expect(!fabric.interruptPending(tpr: 0) && !fabric.ioAPIC.table[16].hasRemoteIRR)
    }

    @Test func suppressedBroadcastWantsTheIOAPICsOwnEOI() {
        var fabric = withAPIC()
        set(&fabric, LocalAPIC.Register.spuriousVector, 0x11ff)
        redirect(&fabric, pin: 16, 0x8061)
        fabric.setPin(16, level: true, at: now)
        _ = fabric.acknowledge(tpr: 0, at: now)
        set(&fabric, LocalAPIC.Register.endOfInterrupt, 0)
        #expect(!fabric.interruptPending(tpr: 0))
        fabric.writeMMIO(address: GuestPhysicalAddress(Self.ioapic + 0x40), size: 4, value: 0x61, at: now)
        #expect(fabric.interruptPending(tpr: 0))
    }

    @Test func theX2APICsEOIReachesTheIOAPIC() {
        var fabric = withAPIC()
        redirect(&fabric, pin: 16, 0x8061)
        #expect(fabric.writeMSR(0x1b, value: 0xfee0_0d00, at: now) == true)
        fabric.setPin(16, level: true, at: now)
        _ = fabric.acknowledge(tpr: 0, at: now)
        #expect(fabric.writeMSR(0x80b, value: 0, at: now) == true)
        #expect(fabric.interruptPending(tpr: 0))
    }

    @Test func aLevelWaitsForTheLocalAPICToBeEnabled() {
        var fabric = InterruptFabric()
        redirect(&fabric, pin: 16, 0x8061)
        redirect(&fabric, pin: 17, 0x62)
        fabric.setPin(16, level: true, at: now)
        fabric.setPin(17, level: true, at: now)
        #expect(!fabric.ioAPIC.table[16].hasRemoteIRR)
        set(&fabric, LocalAPIC.Register.spuriousVector, 0x1ff)
        #expect(fabric.acknowledge(tpr: 0, at: now) == 0x61)
        #expect(!fabric.localAPIC.requests[0x62], "an edge that nobody accepts is lost")
    }

    @Test func ioAPICDeliveryModesReachTheProcessor() {
        var fabric = withAPIC()
        redirect(&fabric, pin: 7, 0x400)
        fabric.pulse(7, at: now)
        #expect(fabric.takeNMI() == true)
        #expect(fabric.takeNMI() == false)
        redirect(&fabric, pin: 7, 0x165)
        fabric.pulse(7, at: now)
        #expect(fabric.acknowledge(tpr: 0, at: now) == 0x65)
        for ignored in [0x200, 0x500, 0x700] as [UInt64] {
            redirect(&fabric, pin: 7, ignored)
            fabric.pulse(7, at: now)
        }
        #expect(!fabric.takeNMI() && !fabric.isInitPending && !fabric.interruptPending(tpr: 0))
    }

    @Test func linesThatDoNotExistAreIgnored() {
        var fabric = withAPIC()
        let before = fabric
        for line in [-1, 2, 16, 1_000, Int.max, Int.min] { fabric.pulse(line, at: now) }
        for pin in [-1, 0, 24, 64, Int.max, Int.min] { fabric.setPin(pin, level: true, at: now) }
        #expect(fabric == before)
    }

    // MARK: The processor's side

    @Test func taskPriorityIsCR8AndTPR() {
        var fabric = withAPIC()
        fabric.tpr = 0x30
        #expect(fabric.readMMIO(address: GuestPhysicalAddress(Self.lapic + 0x80), size: 4, at: now) == 0x30)
        set(&fabric, LocalAPIC.Register.taskPriority, 0x45)
        #expect(fabric.tpr == 0x45)
        fabric.tpr = 0x40
        #expect(fabric.tpr == 0x45, "CR8 did not change")
        fabric.tpr = 0x50
        #expect(fabric.tpr == 0x50)
        #expect(fabric.writeMSR(0x1b, value: 0xfee0_0d00, at: now) == true)
        #expect(fabric.writeMSR(0x808, value: 0x20, at: now) == true)
        #expect(fabric.tpr == 0x20)
    }

    @Test func initResetsTheLocalAPICOnce() {
        var fabric = withAPIC()
        set(&fabric, LocalAPIC.Register.interruptCommandLow, 0x44500)
        #expect(fabric.isInitPending)
        #expect(fabric.takeInit() == true)
        #expect(fabric.takeInit() == false)
        #expect(!fabric.localAPIC.isSoftwareEnabled && fabric.readMSR(0x1b, at: now) == 0xfee0_0900)
    }

    @Test func theNMILineIsLINT1() {
        var fabric = InterruptFabric()
        fabric.setNMILine(level: true, at: now)
        #expect(fabric.takeNMI() == true)
        fabric.setNMILine(level: true, at: now)
        #expect(fabric.takeNMI() == false)
    }

    @Test func theTimerInterruptsAtItsDeadline() {
        var fabric = withAPIC()
        set(&fabric, LocalAPIC.Register.divideConfiguration, 0b1011)
        set(&fabric, LocalAPIC.Register.lvtTimer, 0x40)
        set(&fabric, LocalAPIC.Register.initialCount, 5_000)
        #expect(fabric.nextDeadline(after: now) == Nanoseconds(5_000))
        fabric.advance(to: Nanoseconds(4_999))
        #expect(!fabric.interruptPending(tpr: 0))
        fabric.advance(to: Nanoseconds(5_000))
        #expect(fabric.acknowledge(tpr: 0, at: Nanoseconds(5_000)) == 0x40)
    }

    // MARK: Addresses

    @Test func thePagesAreWhereTheyShouldBe() {
        var fabric = InterruptFabric()
        #expect(fabric.ownsMMIO(GuestPhysicalAddress(0xfee0_0fff)))
        #expect(!fabric.ownsMMIO(GuestPhysicalAddress(0xfee0_1000)))
        #expect(fabric.ownsMMIO(GuestPhysicalAddress(0xfec0_0000)))
        #expect(!fabric.ownsMMIO(GuestPhysicalAddress(0xfec0_1000)))
        #expect(fabric.writeMSR(0x1b, value: 0x1_2345_6000 | 0x900, at: now) == true)
        #expect(fabric.ownsMMIO(GuestPhysicalAddress(0x1_2345_6020)))
        #expect(!fabric.ownsMMIO(GuestPhysicalAddress(0xfee0_0000)))
        #expect(fabric.readMMIO(address: GuestPhysicalAddress(0x1_2345_6030), size: 4, at: now) == 0x0105_0014)
        #expect(fabric.readMMIO(address: GuestPhysicalAddress(0xfee0_0030), size: 2, at: now) == 0xffff)
        #expect(fabric.readMMIO(address: GuestPhysicalAddress(0xfee0_0030), size: 8, at: now) == .max)
    }

    @Test func inX2APICModeThePageIsGone() {
        var fabric = InterruptFabric()
        #expect(fabric.writeMSR(0x1b, value: 0xfee0_0d00, at: now) == true)
        #expect(!fabric.ownsMMIO(GuestPhysicalAddress(0xfee0_0000)))
    }

    @Test func theMSRsAreTheBaseAndTheX2APICRange() {
        let owned = (0...UInt32(0x1000)).filter { InterruptFabric.ownsMSR($0) }
        #expect(owned == [0x1b] + Array(0x800...0x8ff))
    }

    @Test func aLocalAPICPageOverTheIOAPICsWins() {
        var fabric = InterruptFabric()
        #expect(fabric.writeMSR(0x1b, value: Self.ioapic | 0x900, at: now) == true)
        #expect(fabric.readMMIO(address: GuestPhysicalAddress(Self.ioapic + 0x30), size: 4, at: now) == 0x0105_0014)
    }
}
