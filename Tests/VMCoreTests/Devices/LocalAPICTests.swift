import Testing
import VMCore

@Suite struct LocalAPICTests {
    typealias Register = LocalAPIC.Register

    // MARK: Registers

    @Test func resetStateIsThatOfTheSDM() {
        var apic = LocalAPIC()
        #expect(apic.base == 0xfee0_0900)
        let expected: [(UInt32, UInt32)] = [
            (Register.id, 0), (Register.version, 0x0105_0014), (Register.taskPriority, 0),
            (Register.arbitrationPriority, 0), (Register.processorPriority, 0), (Register.logicalDestination, 0),
            (Register.destinationFormat, 0xffff_ffff), (Register.spuriousVector, 0xff), (Register.errorStatus, 0),
            (Register.interruptCommandLow, 0), (Register.interruptCommandHigh, 0), (Register.lvtTimer, 0x10000),
            (Register.lvtThermal, 0x10000), (Register.lvtPerformance, 0x10000), (Register.lvtLINT0, 0x700),
            (Register.lvtLINT1, 0x400), (Register.lvtError, 0x10000), (Register.initialCount, 0),
            (Register.currentCount, 0), (Register.divideConfiguration, 0),
        ]
        for (register, value) in expected { #expect(apic.get(register) == value) }
        for index in 0..<8 as Range<UInt32> {
            #expect(apic.get(0x100 + index * 16) == 0)
            #expect(apic.get(0x180 + index * 16) == 0)
            #expect(apic.get(0x200 + index * 16) == 0)
        }
        #expect(apic.errors() == 0)
    }

    @Test func registersKeepTheirWritableBits() {
        var apic = LocalAPIC.enabled()
        let expected: [(UInt32, UInt32)] = [
            (Register.spuriousVector, 0x11ff), (Register.taskPriority, 0xff),
            (Register.logicalDestination, 0xff00_0000), (Register.destinationFormat, 0xffff_ffff),
            (Register.interruptCommandHigh, 0xff00_0000),
            (Register.lvtTimer, 0x300ff), (Register.lvtThermal, 0x107ff), (Register.lvtPerformance, 0x107ff),
            (Register.lvtLINT0, 0x1a7ff), (Register.lvtLINT1, 0x1a7ff), (Register.lvtError, 0x100ff),
            (Register.initialCount, 0xffff_ffff), (Register.divideConfiguration, 0xb),
        ]
        for (register, value) in expected {
            apic.set(register, 0xffff_ffff)
            #expect(apic.get(register) == value)
        }
        apic.set(Register.interruptCommandLow, 0xffff_ffff)
        #expect(apic.get(Register.interruptCommandLow) == 0xccfff)
        apic.set(Register.destinationFormat, 0)
        #expect(apic.get(Register.destinationFormat) == 0x0fff_ffff)
    }

    @Test func readOnlyRegistersIgnoreWritesWithoutError() {
        var apic = LocalAPIC.enabled()
        let before = apic
        let readOnly = [Register.id, Register.version, Register.processorPriority, Register.currentCount, 0x100, 0x270]
        for register in readOnly {
            apic.set(register, 0xffff_ffff)
        }
        #expect(apic == before)
    }

    @Test func oddSizesReadPartsAndWriteNothing() {
        var apic = LocalAPIC.enabled()
        let now = Nanoseconds(0)
        #expect(apic.readMMIO(offset: 0x30, size: 1, at: now) == 0x14)
        #expect(apic.readMMIO(offset: 0x32, size: 2, at: now) == 0x0105)
        #expect(apic.readMMIO(offset: 0x30, size: 8, at: now) == 0x0105_0014)
        #expect(apic.readMMIO(offset: 0x34, size: 4, at: now) == 0)
        apic.writeMMIO(offset: 0x80, size: 1, value: 0x20, at: now)
        apic.writeMMIO(offset: 0x81, size: 4, value: 0x20, at: now)
        #expect(apic.taskPriority == 0)
        apic.writeMMIO(offset: 0x80, size: 8, value: 0xff_0000_0020, at: now)
        #expect(apic.taskPriority == 0x20)
    }

    // MARK: Priorities

    @Test func theHighestVectorIsDeliveredFirst() {
        var apic = LocalAPIC.enabled()
        for vector in [0x31, 0xe5, 0x80] as [UInt32] { apic.send(0x40000 | vector) }
        #expect(apic.acknowledge(tpr: 0) == 0xe5)
        #expect(apic.deliverableVector(tpr: 0) == nil)
        apic.set(Register.endOfInterrupt, 0)
        #expect(apic.acknowledge(tpr: 0) == 0x80)
    }

    @Test func aHigherClassNestsAndEOIEndsTheHighest() {
        var apic = LocalAPIC.enabled()
        apic.send(0x40000 | 0x45)
        #expect(apic.acknowledge(tpr: 0) == 0x45)
        apic.send(0x40000 | 0x4f)
        #expect(apic.deliverableVector(tpr: 0) == nil, "the same class waits")
        apic.send(0x40000 | 0x50)
        #expect(apic.acknowledge(tpr: 0) == 0x50)
        apic.set(Register.endOfInterrupt, 0)
        #expect(!apic.inService[0x50] && apic.inService[0x45])
        #expect(apic.deliverableVector(tpr: 0) == nil)
        apic.set(Register.endOfInterrupt, 0)
        #expect(apic.acknowledge(tpr: 0) == 0x4f)
    }

    @Test func taskPriorityHoldsBackItsClassAndBelow() {
        var apic = LocalAPIC.enabled()
        apic.send(0x40000 | 0x5f)
        #expect(apic.deliverableVector(tpr: 0x50) == nil)
        #expect(apic.deliverableVector(tpr: 0x4f) == 0x5f)
    }

    @Test func processorPriorityIsTheGreaterOfTaskAndService() {
        var apic = LocalAPIC.enabled()
        apic.set(Register.taskPriority, 0x23)
        #expect(apic.get(Register.processorPriority) == 0x23)
        apic.send(0x40000 | 0x65)
        _ = apic.acknowledge(tpr: 0x23)
        #expect(apic.get(Register.processorPriority) == 0x60)
        apic.set(Register.taskPriority, 0x6b)
        #expect(apic.get(Register.processorPriority) == 0x6b)
    }

    @Test func nothingDeliverableIsTheSpuriousVectorWithoutService() {
        var apic = LocalAPIC.enabled()
        apic.set(Register.spuriousVector, 0x1ef)
        apic.send(0x40000 | 0x31)
        #expect(apic.acknowledge(tpr: 0x30) == 0xef)
        #expect(apic.inService == VectorSet() && apic.requests[0x31])
    }

    @Test func vectorRegistersShowEachVector() {
        for vector in 16..<256 as Range<UInt32> {
            var apic = LocalAPIC.enabled()
            apic.send(0x40000 | vector)
            let offset = (vector / 32) * 16
            #expect(apic.get(0x200 + offset) == 1 << (vector % 32))
            #expect(apic.acknowledge(tpr: 0) == UInt8(vector))
            #expect(apic.get(0x200 + offset) == 0)
            #expect(apic.get(0x100 + offset) == 1 << (vector % 32))
        }
    }

    @Test func levelsSetTheTMRAndAreBroadcastAtEOI() {
        var apic = LocalAPIC.enabled()
        var message = InterruptMessage(
            destination: 0, isLogical: false, mode: .fixed, vector: 0x61, isLevelTriggered: true)
        #expect(apic.receive(message) == true)
        #expect(apic.get(0x180 + 0x30) == 2)
        _ = apic.acknowledge(tpr: 0)
        apic.set(Register.endOfInterrupt, 0)
        #expect(apic.takeEndedLevelVector() == 0x61)
        #expect(apic.takeEndedLevelVector() == nil)

        message.isLevelTriggered = false
        #expect(apic.receive(message) == true)
        #expect(apic.get(0x180 + 0x30) == 0)
        _ = apic.acknowledge(tpr: 0)
        apic.set(Register.endOfInterrupt, 0)
        #expect(apic.takeEndedLevelVector() == nil)
    }

    @Test func broadcastCanBeSuppressed() {
        var apic = LocalAPIC.enabled()
        apic.set(Register.spuriousVector, 0x11ff)
        let message = InterruptMessage(
            destination: 0, isLogical: false, mode: .fixed, vector: 0x61, isLevelTriggered: true)
        #expect(apic.receive(message) == true)
        _ = apic.acknowledge(tpr: 0)
        apic.set(Register.endOfInterrupt, 0)
        #expect(apic.takeEndedLevelVector() == nil && !apic.inService[0x61])
    }

    // MARK: Interprocessor interrupts

    @Test func shorthandsReachSelfOrNot() {
        for (shorthand, arrives) in [(0b01, true), (0b10, true), (0b11, false)] as [(UInt32, Bool)] {
            var apic = LocalAPIC.enabled()
            apic.send(shorthand << 18 | 0x77, to: 9)
            #expect(apic.requests[0x77] == arrives)
        }
    }

    @Test func physicalDestinationIsTheIDOrEveryone() {
        for (destination, arrives) in [(0, true), (1, false), (0xff, true)] as [(UInt32, Bool)] {
            var apic = LocalAPIC.enabled()
            apic.send(0x77, to: destination)
            #expect(apic.requests[0x77] == arrives)
        }
    }

    @Test func flatLogicalDestinationIsABitMask() {
        for (destination, arrives) in [(0x01, false), (0x06, true), (0x02, true), (0xff, true)] as [(UInt32, Bool)] {
            var apic = LocalAPIC.enabled()
            apic.set(Register.logicalDestination, 0x0200_0000)
            apic.send(0x877, to: destination)
            #expect(apic.requests[0x77] == arrives)
        }
    }

    @Test func clusterLogicalDestinationIsAClusterAndAMask() {
        for (destination, arrives) in [(0x32, true), (0x22, false), (0x31, false), (0xf2, true)] as [(UInt32, Bool)] {
            var apic = LocalAPIC.enabled()
            apic.set(Register.destinationFormat, 0)
            apic.set(Register.logicalDestination, 0x3200_0000)
            apic.send(0x877, to: destination)
            #expect(apic.requests[0x77] == arrives)
        }
    }

    @Test func deliveryModesDoWhatTheySay() {
        var apic = LocalAPIC.enabled()
        apic.send(0x100 | 0x78)
        #expect(apic.requests[0x78], "lowest priority: the only processor wins")
        apic.send(0x400)
        #expect(apic.isNMIPending)
        apic.send(0x500 | 1 << 15)
        #expect(!apic.isInitPending, "INIT level de-assert")
        apic.send(0x500 | 1 << 14)
        #expect(apic.isInitPending)
        let before = apic
        apic.send(0x600 | 0x10)
        apic.send(0x200)
        #expect(apic.requests == before.requests && apic.errors() == 0, "start-up and SMI are ignored")
    }

    // MARK: Errors

    @Test func errorsAreReadableAfterAWrite() {
        var apic = LocalAPIC.enabled()
        apic.send(0x40000 | 0x0f)
        #expect(apic.get(Register.errorStatus) == 0)
        #expect(apic.errors() == LocalAPIC.ESR.sendIllegalVector)
        #expect(apic.get(Register.errorStatus) == LocalAPIC.ESR.sendIllegalVector)
        #expect(apic.errors() == 0)
    }

    @Test func receivedIllegalVectorsAreErrors() {
        var apic = LocalAPIC.enabled()
        let message = InterruptMessage(
            destination: 0, isLogical: false, mode: .fixed, vector: 3, isLevelTriggered: false)
        #expect(apic.receive(message) == true)
        #expect(apic.requests == VectorSet())
        #expect(apic.errors() == LocalAPIC.ESR.receiveIllegalVector)
    }

    @Test(arguments: [0x000, 0x010, 0x040, 0x070, 0x290, 0x2f0, 0x3a0, 0x3d0, 0x3f0, 0x400, 0xff0] as [UInt32])
    func reservedRegistersAreErrors(register: UInt32) {
        var apic = LocalAPIC.enabled()
        #expect(apic.get(register) == 0)
        #expect(apic.errors() == LocalAPIC.ESR.illegalRegisterAddress)
        apic.set(register, 1)
        #expect(apic.errors() == LocalAPIC.ESR.illegalRegisterAddress)
    }

    @Test func theErrorInterruptFiresOnceUntilTheESRIsWritten() {
        var apic = LocalAPIC.enabled()
        apic.set(Register.lvtError, 0xfe)
        _ = apic.get(0x400)
        #expect(apic.acknowledge(tpr: 0) == 0xfe)
        apic.set(Register.endOfInterrupt, 0)
        _ = apic.get(0x400)
        #expect(apic.deliverableVector(tpr: 0) == nil)
        _ = apic.errors()
        _ = apic.get(0x400)
        #expect(apic.deliverableVector(tpr: 0) == 0xfe)
    }

    @Test func anIllegalErrorVectorEnds() {
        var apic = LocalAPIC.enabled()
        apic.set(Register.lvtError, 0x03)
        _ = apic.get(0x400)
        #expect(apic.errors() == LocalAPIC.ESR.illegalRegisterAddress | LocalAPIC.ESR.receiveIllegalVector)
    }

    // MARK: Software-disabled

    @Test func disablingInSoftwareMasksTheLVT() {
        var apic = LocalAPIC.enabled()
        apic.set(Register.lvtTimer, 0x40)
        apic.set(Register.spuriousVector, 0xff)
        let entries = [
            Register.lvtTimer, Register.lvtThermal, Register.lvtPerformance, Register.lvtLINT0, Register.lvtLINT1,
            Register.lvtError,
        ]
        for entry in entries {
            #expect(apic.get(entry) & 0x10000 != 0)
            apic.set(entry, 0x40)
            #expect(apic.get(entry) == 0x10040, "the mask can't be cleared")
        }
        apic.set(Register.spuriousVector, 0x1ff)
        #expect(apic.get(Register.lvtTimer) == 0x10040, "enabling unmasks nothing")
    }

    @Test func aSoftwareDisabledAPICAcceptsNoFixedInterruptButKeepsWhatItHas() {
        var apic = LocalAPIC.enabled()
        apic.send(0x40000 | 0x31)
        apic.set(Register.spuriousVector, 0xff)
        var message = InterruptMessage(
            destination: 0, isLogical: false, mode: .fixed, vector: 0x61, isLevelTriggered: false)
        #expect(apic.receive(message) == false)
        apic.send(0x40000 | 0x62)
        message.mode = .nmi
        #expect(apic.receive(message) && apic.isNMIPending)
        #expect(apic.acknowledge(tpr: 0) == 0x31)
        #expect(apic.requests == VectorSet())
    }

    // MARK: Pins

    @Test func lint0FixedEdge() {
        var apic = LocalAPIC.enabled()
        apic.set(Register.lvtLINT0, 0x35)
        apic.setLINT0(true)
        apic.setLINT0(true)
        #expect(apic.acknowledge(tpr: 0) == 0x35)
        apic.set(Register.endOfInterrupt, 0)
        #expect(apic.deliverableVector(tpr: 0) == nil && !apic.passesExtINT)
        apic.setLINT0(false)
        apic.setLINT0(true)
        #expect(apic.deliverableVector(tpr: 0) == 0x35)
    }

    @Test func lint0FixedLevelRepeatsAfterEOI() {
        var apic = LocalAPIC.enabled()
        apic.set(Register.lvtLINT0, 0x8035)
        apic.setLINT0(true)
        #expect(apic.get(Register.lvtLINT0) == 0xc035, "remote IRR")
        #expect(apic.acknowledge(tpr: 0) == 0x35)
        apic.setLINT0(true)
        #expect(!apic.requests[0x35])
        apic.set(Register.endOfInterrupt, 0)
        #expect(apic.acknowledge(tpr: 0) == 0x35)
        apic.setLINT0(false)
        apic.set(Register.endOfInterrupt, 0)
        #expect(apic.get(Register.lvtLINT0) == 0x8035 && !apic.requests[0x35])
    }

    @Test func lint0LevelIsKeptWhileMaskedAndAnEdgeIsLost() {
        var apic = LocalAPIC.enabled()
        apic.set(Register.lvtLINT0, 0x18035)
        apic.setLINT0(true)
        apic.set(Register.lvtLINT0, 0x10035)
        apic.set(Register.lvtLINT0, 0x35)
        #expect(!apic.requests[0x35])
        apic.set(Register.lvtLINT0, 0x8035)
        #expect(apic.requests[0x35])
    }

    @Test func lint1IsNMIAtReset() {
        var apic = LocalAPIC()
        apic.setLINT1(true)
        #expect(apic.isNMIPending)
        apic.isNMIPending = false
        apic.setLINT1(true)
        #expect(!apic.isNMIPending, "no edge")
        apic.set(Register.lvtLINT1, 0x10400)
        apic.setLINT1(false)
        apic.setLINT1(true)
        #expect(!apic.isNMIPending, "masked")
    }

    @Test func aDisabledAPICPassesBothPins() {
        var apic = LocalAPIC()
        apic.set(Register.lvtLINT0, 0x10700)
        apic.set(Register.lvtLINT1, 0x10400)
        #expect(!apic.passesExtINT)
        #expect(apic.writeMSR(0x1b, 0xfee0_0000, at: Nanoseconds(0)) == true)
        #expect(apic.passesExtINT)
        apic.setLINT1(true)
        #expect(apic.isNMIPending)
    }

    @Test func timeMayBeAnything() {
        var apic = LocalAPIC.enabled()
        apic.set(Register.lvtTimer, 0x20040)
        apic.set(Register.initialCount, .max, at: .max)
        #expect(apic.nextDeadline(after: Nanoseconds(.max)) == Nanoseconds(.max))
        apic.advance(to: Nanoseconds(.max))
        apic.advance(to: Nanoseconds(0))
        _ = apic.get(Register.currentCount, at: 0)
        var generator = SeededGenerator(seed: 64)
        apic.makeRandomAccesses(10_000, &generator, from: Nanoseconds(.max - 1_000_000))
    }
}
